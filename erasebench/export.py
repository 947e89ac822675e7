"""Write a run's erased model in a form that other tools load, with a card that says what it is.

    python -m erasebench.export run=results/runs/emoji/cat/uce/none/seed0 out=FOLDER
    python -m erasebench.export run=results/runs/emoji/cat/uce/none/seed0 out=FILE.safetensors

``format=diffusers`` (the default for a folder) is a whole pipeline for ``DiffusionPipeline.from_pretrained``.
``format=safetensors`` is the changed tensors alone, under the names of diffusers, for
``pipe.unet.load_state_dict(load_file(FILE), strict=False)`` or for ``method=checkpoint`` here: in the file that ``out``
names, or in a folder with a file for each part of the model. The card is README.md in a folder, and beside a file its
name with ``.md``; the header of a safetensors file holds it too.

    python -m erasebench.export hub=FOLDER [results=DIR]

writes all tables of a results folder as a dataset, Parquet with a card; ``hf upload NAME FOLDER . --repo-type dataset``
publishes it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from erasebench.cell import model_hash
from erasebench.command.arguments import Incomplete, command, parse
from erasebench.limits import read_json
from erasebench.report import tables
from erasebench.report.card import card, facts
from erasebench.report.runs import find_run
from erasebench.store.cache import plain_key
from erasebench.store.files import locate, usual_mode, work_path
from erasebench.types import Pipeline

FORMATS = ("diffusers", "safetensors")
USAGE = (
    f"usage: python -m erasebench.export run=FOLDER out=FOLDER|FILE.safetensors [format={'|'.join(FORMATS)}], or "
    "hub=FOLDER [results=DIR]"
)


def export(run: Path, format: str, out: Path) -> list[Path]:
    """Write the erased model of a run folder to ``out`` and return the files written.

    Args:
        run: folder with a run.json, as the run printed it.
        format: ``diffusers`` or ``safetensors``.
        out: a folder that is empty or not there yet; or, for safetensors, a ``.safetensors`` file that is not there.

    Raises:
        FileNotFoundError: no run, or its stored erasure is gone.
        ValueError: an unknown format, a folder with something in it, a file that is there, a model that has changed
            since, an erasure that is not in the weights (sld, negative_prompt), or nothing to write.
    """
    _check(format, out)
    run = find_run(run)
    record = read_run(run)
    erased, original = load(record, results_of(run))
    summary = tables.read_summary(run / "summary.csv")
    licence = base_licence(record["config"]["model"])

    def told(usage: str) -> str:
        return card(record, summary, usage=usage, base_licence=licence)

    if out.suffix == ".safetensors":
        return _write_file(erased, original, out, told, facts(record))
    with _new_folder(out) as work:
        if format == "diffusers":
            erased.save_pretrained(work, safe_serialization=True)
            use = f'`DiffusionPipeline.from_pretrained("{out.name}")` of diffusers loads this folder.'
        else:
            use = "\n".join(_write_parts(erased, original, work, facts(record)))
        (work / "README.md").write_text(told(use), encoding="utf-8")
    return sorted(path for path in out.rglob("*") if path.is_file())


def _check(format: str, out: Path) -> None:
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {format!r}; correct its spelling")
    if out.suffix == ".safetensors":
        if format != "safetensors":
            raise ValueError(f"format={format} is a folder; got out={out}; name a folder, or leave format out")
        if there := next((path for path in (out, out.with_suffix(".md")) if path.exists()), None):
            raise ValueError(f"out must not be there yet; {there} is; choose another name")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out must be empty or not there; {out} is not; choose another folder")


def load(record: Mapping[str, Any], root: Path) -> tuple[Pipeline, Pipeline]:
    """The erased and the original model of a run's record, on the CPU."""
    from erasebench import diffusion  # here, as torch is: the command says what it is before it loads for seconds
    from erasebench.diffusion import erasures

    key = record["steps"]["erase"]["key"]
    folder = root / "cache" / "erase" / plain_key(key)
    if (folder / erasures.RECORD).is_file() and (guide := erasures.read(folder).get("guide")):
        raise ValueError(
            f"run must have changed weights; {record['identity']['names']['method']} erases while drawing "
            f"({guide['_target_']}); use its own settings in the other tool, or export the run of the edit below it"
        )
    if (folder / erasures.ADAPTERS).is_file():
        raise ValueError(
            f"run must have changed weights; {record['identity']['names']['method']} erases by adapters beside them; "
            f"their tensors are in {folder / erasures.ADAPTERS}, and what they are in {erasures.RECORD} there"
        )
    model = record["config"]["model"]
    if model_hash(model, root / "cache" / "fingerprints.json") != record["model_hash"]:
        raise ValueError(f"model {model['path'] or model['name']} must be as it was; it has changed; run again")
    original = diffusion.load(locate(model["path"]), revision=model["revision"], dtype=model["dtype"])
    return erasures.restore(root, key, original), original


def read_run(run: Path) -> dict[str, Any]:
    """The record of a run folder; it must say where its erasure is stored."""
    try:
        record: dict[str, Any] = read_json(run / "run.json")
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


def base_licence(model: Mapping[str, Any]) -> str:
    """The licence that a model folder's own card names in its front matter, "" if there is none."""
    try:
        text = (locate(model["path"]) / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    front = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    lines = [line.partition(":")[2].strip() for line in front.splitlines() if line.startswith("license:")]
    return lines[0].strip("'\"") if lines else ""


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` in one move."""
    out.parent.mkdir(parents=True, exist_ok=True)
    work = work_path(out)
    work.mkdir()
    try:
        yield work
        for path in work.rglob("*"):
            usual_mode(path)
        if out.exists():
            out.rmdir()
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def changed_by_part(erased: Pipeline, original: Pipeline) -> dict[str, dict[str, Any]]:
    """The changed tensors of each part of the pipeline, by their own names.

    Raises:
        ValueError: there are none.
    """
    from erasebench import diffusion

    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in diffusion.changed_tensors(erased, original).items():
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = tensor.detach().contiguous()
    if not parts:
        raise ValueError("run must have changed weights; it changed none; use format=diffusers for the whole model")
    return parts


def _write_parts(erased: Pipeline, original: Pipeline, folder: Path, metadata: Mapping[str, str]) -> list[str]:
    """A file for each part; returns how each is loaded."""
    from safetensors.torch import save_file

    parts = changed_by_part(erased, original)
    for part, tensors in parts.items():
        save_file(tensors, folder / f"{part}.safetensors", metadata={"format": "pt", **metadata})
    return [_loading(f"{part}.safetensors", part) for part in parts]


def _write_file(
    erased: Pipeline, original: Pipeline, out: Path, told: Callable[[str], str], metadata: Mapping[str, str]
) -> list[Path]:
    """All changed tensors in one file, with their part before their names if there are several parts."""
    from safetensors.torch import save_file

    parts = changed_by_part(erased, original)
    alone = len(parts) == 1
    tensors = {key if alone else f"{part}.{key}": t for part, held in parts.items() for key, t in held.items()}
    text = told(_loading(out.name, next(iter(parts)) if alone else ""))
    out.parent.mkdir(parents=True, exist_ok=True)
    files = {out: work_path(out), out.with_suffix(".md"): work_path(out.with_suffix(".md"))}
    try:
        save_file(tensors, files[out], metadata={"format": "pt", **metadata, "card": text})
        files[out.with_suffix(".md")].write_text(text, encoding="utf-8")
        for path, work in files.items():
            usual_mode(work)
            work.replace(path)
    finally:
        for work in files.values():
            work.unlink(missing_ok=True)
    return list(files)


def _loading(file: str, part: str) -> str:
    here = f"here `method=checkpoint method.path={file}`"
    if not part:
        return f"`{file}` holds the changed tensors, the pipeline's part before each name; {here} reads it."
    return (
        f"`{file}` holds the changed tensors of the base model's {part} under the names of diffusers: "
        f'`pipe.{part}.load_state_dict(load_file("{file}"), strict=False)` with safetensors; {here}.'
    )


def _dataset(root: Path, folder: Path) -> str:
    """Write the dataset and say where."""
    from erasebench.report.hub import write_dataset

    files, skipped = write_dataset(root, folder)
    size = sum(file.stat().st_size for file in files) / 1e6
    publish = f"hf upload NAME {folder} . --repo-type dataset"
    said = f"{len(files)} files, {size:.1f} MB, written to {folder}; publish: {publish}"
    if skipped:
        raise Incomplete(said, skipped)
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if it worked, 2 with one line of explanation if not."""

    def work(words: list[str]) -> str:
        given = parse(words, {"run": "", "out": "", "format": "", "hub": "", "results": "results"})
        if given["hub"]:
            return _dataset(Path(given["results"]), Path(given["hub"]))
        parse(words, given, needed=("run", "out"))
        out = Path(given["out"])
        format = given["format"] or ("safetensors" if out.suffix == ".safetensors" else "diffusers")
        files = export(Path(given["run"]), format, out)
        return f"{len(files)} files, {sum(f.stat().st_size for f in files) / 1e6:.1f} MB, written to {out}"

    return command(USAGE, __doc__, arguments, work)


if __name__ == "__main__":
    sys.exit(main())
