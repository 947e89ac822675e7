"""Pictures as files: PNG for screens, PDF for papers."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from erasebench.store.files import replacing

FORMATS = {".png": "PNG", ".pdf": "PDF"}
DPI = 144  # of a page in a PDF


def save(page: Image.Image, path: Path) -> Path:
    """Write a page as what its name says, in one move.

    Raises:
        ValueError: a name that ends in neither .png nor .pdf.
        OSError: the folder is not writable or the disk is full.
    """
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"out must end in {' or '.join(FORMATS)}; got {path.name}; rename it")
    more = {"optimize": True} if kind == "PNG" else {"resolution": DPI, "quality": 95, "subsampling": 0}
    with replacing(path) as work:
        page.save(work, format=kind, **more)
    return path
