"""erasebench: measure concept erasure in text-to-image diffusion models on equal terms."""

from pathlib import Path

__version__ = "0.1.0"


def conf_folder() -> Path:
    """The Hydra configs: ``conf/`` of the clone, or the copy inside an installed package."""
    clone = Path(__file__).parent.parent / "conf"
    return clone if clone.is_dir() else Path(__file__).parent / "conf"
