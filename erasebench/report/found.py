"""The prompts an attack found: read from the run that found them or from an exported CSV, and written as one.

``python -m erasebench.found run=FOLDER [file=FILE.csv] [texts=true]`` writes the CSV. Prompts of unsafe concepts are
written as ids and hashes unless texts=true asks for them.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file

from erasebench import fields, store
from erasebench.limits import read_json
from erasebench.prompts.files import read_prompts, read_rows, seed_cell, truth_cell
from erasebench.report import tables
from erasebench.report.printing import cell, uncell
from erasebench.store.files import replacing
from erasebench.types import Prompt

COLUMNS = ("id", "prompt", "seed", "guidance", "concept", "source_id", "source_seed", "success", "sha256")


@dataclass(frozen=True, kw_only=True)
class Found:
    """Attack prompts with their origin.

    Args:
        prompts: group attack.
        origin: model/concept/method/attack/seed of the run, or the file's name.
        concept: name of the concept they were searched for; "" if the file names none.
        unsafe: whether that concept is of kind unsafe.
        source_seeds: source id -> seed of the plain prompt it was, as far as known.
    """

    prompts: tuple[Prompt, ...]
    origin: str
    concept: str
    unsafe: bool
    source_seeds: Mapping[str, int]


def read_found(path: str | Path) -> Found:
    """The prompts of a run's folder, or of a CSV written by :func:`write_csv`.

    Raises:
        FileNotFoundError: neither is there, or the run's prompts were removed from the cache.
        ValueError: a run without attack prompts, a bad row, a text that is not the one its hash says, or no text.
    """
    path = fields.path("run", path)
    if (path / "run.json").is_file():
        return _from_run(path)
    if path.is_file():
        return _from_csv(path)
    raise FileNotFoundError(f"run {path} must be a run's folder or an exported CSV; got neither; check the path")


def _from_run(path: Path) -> Found:
    try:
        record = read_json(path / "run.json")
        names, config = record["identity"]["names"], record["config"]
        kept = store.plain_key(Path(record["steps"]["attack"]["folder"]).name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / 'run.json'} must be the record of a run; got {error}; run the cell again") from None
    path = path.resolve()
    beside = [parent / "cache" / "attack" / kept for parent in path.parents if parent.name != "runs"]
    folder = next((f for f in beside if store.read_manifest(f) is not None), None)
    if folder is None:
        raise FileNotFoundError(f"{path} found its prompts in cache/attack/{kept}, which is gone; run that cell again")
    rows = read_json(folder / "prompts.json")
    if not rows:
        raise ValueError(f"{path} has no attack prompts (attack {names['attack']}); name the run of another attack")
    embeds = load_file(folder / "embeds.safetensors")
    scores = tables.read_scores(path / "scores.parquet")
    seeds = scores[(scores.group == "target") & scores.seed.notna()]
    return Found(
        prompts=tuple(Prompt(**row, embeds=embeds.get(row["id"])) for row in rows),
        origin="/".join([*(names[k] for k in ("model", "concept", "method", "attack")), path.name]),
        concept=names["concept"] if config.get("also") else config["concept"].get("name", names["concept"]),
        unsafe=config["concept"]["kind"] == "unsafe",
        source_seeds={str(i): int(s) for i, s in zip(seeds.prompt_id, seeds.seed, strict=True)},
    )


def _from_csv(path: Path) -> Found:
    prompts = read_prompts(path, seed="seed", guidance="guidance", id="id", concept="concept", group="attack")
    found, seeds = [], {}
    for prompt, (place, row) in zip(prompts, read_rows(path, dict.fromkeys(COLUMNS, "export it again")), strict=True):
        where = f"{path.name} {place}, column"
        if not prompt.text and row["sha256"] != digest(""):
            raise ValueError(f"{path.name} id {row['id']} has a hash and no text; export it with texts=true")
        prompt = _as_written(prompt, row["sha256"])
        if digest(prompt.text) != row["sha256"]:
            raise ValueError(f"{path.name} id {row['id']} must have the text its sha256 says; it was changed")
        if row["source_seed"].strip():
            seeds[uncell(row["source_id"])] = seed_cell(f"{where} 'source_seed'", row["source_seed"])
        success = truth_cell(f"{where} 'success'", row["success"])
        info = {} if success is None else {"success": success}
        ids = {"id": uncell(row["id"]), "source_id": uncell(row["source_id"])}
        found.append(prompt.with_(**ids, concept=uncell(prompt.concept), info=info))
    concepts = {p.concept for p in found}
    if len(concepts) > 1:
        raise ValueError(f"{path.name} must be about one concept; got {', '.join(sorted(concepts))}; split it")
    return Found(
        prompts=tuple(found), origin=path.name, concept=concepts.pop(), unsafe=False, source_seeds=seeds
    )  # fmt: skip


def _as_written(prompt: Prompt, sha256: str) -> Prompt:
    """The prompt without the apostrophe that keeps spreadsheets from reading its text as a formula."""
    text = uncell(prompt.text)
    return prompt.with_(text=text) if digest(text) == sha256 else prompt


def digest(text: str) -> str:
    """sha256 of a text's UTF-8 bytes, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_csv(path: Path, found: Found, texts: bool = False) -> Path:
    """Write found prompts, one a row, with the columns of :data:`COLUMNS`, in one move.

    Args:
        path: of the file.
        found: what was found.
        texts: write the texts of an unsafe concept's prompts; otherwise their column stays empty, and their hash says
            which they were. Other concepts' texts are always written.

    Raises:
        ValueError: prompts that are embeddings, which no CSV holds.
    """
    if any(p.embeds is not None for p in found.prompts):
        raise ValueError(f"prompts of {found.origin} must be texts; got embeddings; replay the run's folder instead")
    buffer = io.StringIO(newline="")
    quoted = any("\r" in p.text for p in found.prompts)
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writerow(COLUMNS)
    for p in found.prompts:
        success = "" if "success" not in p.info else int(p.info["success"])
        writer.writerow(
            [
                cell(p.id), cell(p.text) if texts or not found.unsafe else "", p.seed,
                "" if p.guidance_scale is None else p.guidance_scale, cell(p.concept), cell(p.source_id),
                found.source_seeds.get(p.source_id, ""), success, digest(p.text),
            ]
        )  # fmt: skip
    with replacing(path) as work:
        work.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    return path
