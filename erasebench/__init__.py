"""erasebench: measure concept erasure in text-to-image diffusion models on equal terms."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erasebench.api import load as load
    from erasebench.api import results as results
    from erasebench.api import run as run
    from erasebench.report.paired import compare_methods as compare_methods

# No dependency phones its maker or leaves an id behind; read by each when it is imported. Yours, if set, stay.
for _name in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")

__version__ = "0.1.0"
__all__ = ["compare_methods", "conf_folder", "load", "results", "run"]


def conf_folder() -> Path:
    """The Hydra configs: ``conf/`` of the clone, or the copy inside an installed package."""
    clone = Path(__file__).parent.parent / "conf"
    return clone if clone.is_dir() else Path(__file__).parent / "conf"


def __getattr__(name: str) -> Any:
    """``erasebench.run``, ``load``, ``results`` and ``compare_methods``, imported when they are first used."""
    if name == "compare_methods":
        return import_module("erasebench.report.paired").compare_methods
    if name in ("load", "results", "run"):
        return getattr(import_module("erasebench.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
