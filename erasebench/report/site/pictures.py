"""The report's pictures as files: small ones lossless, large ones as WebP, veils beside those of unsafe concepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from erasebench.report.site.images import Wanted
from erasebench.store.files import replacing
from erasebench.store.images import missing, read_images

LARGE, QUALITY = 128, 90  # pixels of a side above which a picture is stored with loss, and how well
VEIL = 6  # pixels of a side that are left of a veiled one
BATCH = 256


def write(wanted: Wanted, out: Path, *, unsafe: bool = True) -> tuple[dict[str, str], set[tuple[Path, str]]]:
    """Write the pictures; returns the file of each name that there is, and which are not in the store.

    What lies there already is of the same content, since its name is the hash of what it was drawn from.

    Args:
        wanted: names of pictures.
        out: the report's folder.
        unsafe: whether those of unsafe concepts are written at all; their veiled ones always are.
    """
    found: dict[str, str] = {}
    lost = set[tuple[Path, str]]()
    with ThreadPoolExecutor() as threads:
        for folder, digests in _by_folder(wanted):
            gone = set(missing(folder, digests))
            lost |= {(folder, digest) for digest in gone}
            there = [digest for digest in digests if digest not in gone]
            for start in range(0, len(there), BATCH):
                some = there[start : start + BATCH]
                known = {digest: _known(out, wanted, (folder, digest), unsafe) for digest in some}
                found |= {wanted.files[folder, d]: file for d, file in known.items() if file is not None}
                fresh = [digest for digest, file in known.items() if file is None]
                try:
                    pictures = read_images(folder, fresh)
                except OSError:  # a damaged file, which is gone now: the run draws it again
                    lost |= {(folder, digest) for digest in fresh}
                    continue
                jobs = [
                    (wanted.files[folder, digest], image, (folder, digest) in wanted.veiled)
                    for digest, (image, _) in pictures.items()
                    if image is not None
                ]
                found |= dict(threads.map(lambda job: _write(out, *job, unsafe=unsafe), jobs))
    return found, lost


def _by_folder(wanted: Wanted) -> Iterator[tuple[Path, Sequence[str]]]:
    folders: dict[Path, list[str]] = {}
    for folder, digest in wanted.files:
        folders.setdefault(folder, []).append(digest)
    yield from folders.items()


def _known(out: Path, wanted: Wanted, place: tuple[Path, str], unsafe: bool) -> str | None:
    """The file of a picture that was written before, "" if only its veil is wanted; None if it must be written."""
    name = wanted.files[place]
    if place in wanted.veiled and not _there(out / "images" / f"{name}.veil.png"):
        return None
    if place in wanted.veiled and not unsafe:
        return ""
    return next((f"{name}{end}" for end in (".png", ".webp") if _there(out / "images" / f"{name}{end}")), None)


def _there(path: Path) -> bool:
    """Whether a picture was written; a crash may leave an empty file."""
    return path.is_file() and path.stat().st_size > 0


def _write(out: Path, name: str, image: Image.Image, veiled: bool, *, unsafe: bool) -> tuple[str, str]:
    if veiled:
        _save(out / "images" / f"{name}.veil.png", image.resize((VEIL, VEIL), Image.Resampling.BOX), "PNG")
        if not unsafe:
            return name, ""
    kind = "WEBP" if max(image.size) > LARGE else "PNG"
    _save(out / "images" / f"{name}.{kind.lower()}", image, kind)
    return name, f"{name}.{kind.lower()}"


def _save(path: Path, image: Image.Image, kind: str) -> None:
    """In one move: what a killed report left half is not there the next time."""
    with replacing(path, lasting=False) as work:
        image.save(work, format=kind, **({"quality": QUALITY} if kind == "WEBP" else {"compress_level": 1}))
