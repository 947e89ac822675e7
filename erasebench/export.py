"""Write a run's erased model in a form that other tools load.

    python -m erasebench.export run=results/runs/emoji/cat/uce/none/seed0 format=diffusers out=FOLDER

``diffusers`` is a whole pipeline for ``DiffusionPipeline.from_pretrained``. ``safetensors`` is the changed tensors
alone, a file per part under the names of diffusers, for
``pipe.unet.load_state_dict(load_file("unet.safetensors"), strict=False)``, or for ``method=checkpoint`` here.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from erasebench import diffusion
from erasebench.cell import model_hash
from erasebench.diffusion import erasures
from erasebench.store.files import locate, work_path
from erasebench.types import Pipeline

FORMATS = ("diffusers", "safetensors")


def export(run: Path, format: str, out: Path) -> list[Path]:
    """Write the erased model of a run folder into ``out`` and return the files written.

    Args:
        run: folder with a run.json, as the run printed it.
        format: ``diffusers`` or ``safetensors``.
        out: a folder that is empty or not there yet.

    Raises:
        FileNotFoundError: no run, or its stored erasure is gone.
        ValueError: an unknown format, a folder with something in it, a model that has changed since, an erasure that is
            not in the weights (sld, negative_prompt), or nothing to write.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {format!r}; correct its spelling")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out must be empty or not there; {out} is not; choose another folder")
    record = read_run(run)
    root = results_of(run)
    erased, original = load(record, root)
    work = work_path(out)
    try:
        if format == "diffusers":
            erased.save_pretrained(work, safe_serialization=True)
        else:
            _write_changed(erased, original, work, record)
        if out.exists():
            out.rmdir()
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return sorted(path for path in out.rglob("*") if path.is_file())


def load(record: Mapping[str, Any], root: Path) -> tuple[Pipeline, Pipeline]:
    """The erased and the original model of a run's record, on the CPU."""
    key = record["steps"]["erase"]["key"]
    folder = root / "cache" / "erase" / key
    if (folder / erasures.RECORD).is_file() and (guide := erasures.read(folder).get("guide")):
        raise ValueError(
            f"run must have changed weights; {record['identity']['names']['method']} erases while drawing "
            f"({guide['_target_']}); use its own settings in the other tool"
        )
    model = record["config"]["model"]
    if model_hash(model, root / "cache" / "fingerprints.json") != record["model_hash"]:
        raise ValueError(f"model {model['path'] or model['name']} must be as it was; it has changed; run again")
    original = diffusion.load(locate(model["path"]), revision=model["revision"], dtype=model["dtype"])
    return erasures.restore(root, key, original), original


def read_run(run: Path) -> dict[str, Any]:
    """The record of a run folder; it must say where its erasure is stored."""
    try:
        record: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
        _ = record["steps"]["erase"]["key"], record["config"]["model"], record["model_hash"]
        return record
    except FileNotFoundError:
        raise FileNotFoundError(f"run must be a folder with a run.json; found none in {run}; check the path") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{run / 'run.json'} does not name its erasure; delete the folder and run again") from None


def results_of(run: Path) -> Path:
    """The results folder that a run folder lies in."""
    runs = next((parent for parent in run.resolve().parents if parent.name == "runs"), None)
    if runs is None:
        raise ValueError(
            f"run must lie in a results folder (RESULTS/runs/...); got {run}; give it where it was written"
        )
    return runs.parent


def _write_changed(erased: Pipeline, original: Pipeline, folder: Path, record: Mapping[str, Any]) -> None:
    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in diffusion.changed_tensors(erased, original).items():
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = tensor.detach().contiguous()
    if not parts:
        raise ValueError("run must have changed weights; it changed none; use format=diffusers for the whole model")
    folder.mkdir(parents=True)
    names = {k: str(v) for k, v in record["identity"]["names"].items()}
    for part, tensors in parts.items():
        save_file(tensors, folder / f"{part}.safetensors", metadata={"format": "pt", **names})


def main(arguments: list[str]) -> int:
    """The command; 0 if it worked, 2 with one line of explanation if not."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if len(given) != len(arguments) or set(given) != {"run", "format", "out"}:
        print(f"usage: python -m erasebench.export run=FOLDER format={'|'.join(FORMATS)} out=FOLDER", file=sys.stderr)
        return 2
    try:
        files = export(Path(given["run"]), given["format"], Path(given["out"]))
    except (OSError, ValueError, ArithmeticError) as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"{len(files)} files, {sum(f.stat().st_size for f in files) / 1e6:.1f} MB, written to {given['out']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
