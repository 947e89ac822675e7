"""The six steps of a run: load, erase, attack, draw, score, record; each looks into the store before it works."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from erasebench import diffusion, loaded, progress, store
from erasebench.cell import VERSION, Cell, drawing, image_set, without_devices
from erasebench.composition import stages as methods_of
from erasebench.devices import check_device
from erasebench.diffusion import erasures
from erasebench.diffusion.counting import counting
from erasebench.judges.looking import one_pass
from erasebench.limits import read_json
from erasebench.protocols import Attack, Evaluator, Judge, Method, other_side
from erasebench.store import provenance, workspace
from erasebench.store.claims import POLL, Watch, share
from erasebench.store.files import FULL, explained, locate
from erasebench.store.images import ImageSet
from erasebench.types import Concept, Pipeline, Prompt, Score, Status

log = logging.getLogger(__name__)

COMMIT = 2  # batches drawn between two commits


def load(cell: Cell) -> Pipeline:
    """The original model, float weights as configured, on the configured device."""
    model = cell.config["model"]
    device = check_device("model.device", model["device"])
    switches = {key: model.get(key) for key in ("scheduler", "vae_tiling", "channels_last", "offload")}
    name = f"{cell.model_hash} {model['dtype']} {device} {switches}"
    with cell.measured("load") as record:
        record["cached"] = name in loaded.pipes
        if name not in loaded.pipes:
            loaded.forget()
            options = {"revision": model["revision"], "dtype": model["dtype"], "device": device}
            loaded.pipes[name] = diffusion.load(locate(model["path"]), **options, **switches)
    return loaded.pipes[name]


def check_family(pipe: Pipeline, method: Method, attack: Attack, names: Mapping[str, str]) -> None:
    """Methods say whether they work on UNets, on transformers, or both; attacks on transformers must only ask.

    Raises:
        ValueError: a method or an attack for the other kind.
    """
    if getattr(pipe, "offload", None) and attack.access == "model":
        raise ValueError(
            f"model.offload must be null for attack={names['attack']}, which asks the denoiser itself; use a larger GPU"
        )
    works_on = getattr(method, "denoisers", ("unet",))
    if not diffusion.is_flow(pipe):
        if "unet" not in works_on:
            raise ValueError(
                f"method {names['method']} must have a transformer (model=sd3, flux); {type(pipe).__name__} has a "
                "UNet; see erasebench ls methods"
            )
        return
    if "transformer" not in works_on:
        raise ValueError(
            f"method {names['method']} must be defined for transformers; {type(pipe).__name__} has no UNet; use "
            "method=esd_flow, uce_flux (FLUX), checkpoint or none"
        )
    if attack.access != "none":
        raise ValueError(
            f"attack {names['attack']} must be defined for transformers; {type(pipe).__name__} has no UNet; use a "
            "published set of prompts"
        )


def erase(cell: Cell, method: Method, original: Pipeline, concept: Concept) -> tuple[Pipeline, str]:
    """The erased model, always rebuilt from what was stored of it, and the key of all that its images depend on.

    Concepts that are erased in sequence are a step each, so a sequence shares its beginning with shorter ones; so are
    methods that are composed. What the steps cost is added up.
    """
    stages: list[tuple[Concept, Any]] = [(concept, cell.concepts[0])]
    if concept.parts:
        stages = [(concept, {"parts": cell.concepts})]
        if cell.config["together"] == "sequence":
            stages = list(zip(concept.parts, cell.concepts, strict=True))
    erased, key = original, cell.model_hash
    with cell.measured("erase") as record:
        record |= {"cached": True, "bytes": 0, "intact": True}
        for one, settings in methods_of(method, cell.config["method"]):
            for part, node in stages:
                erased, key = _erase(cell, one, (erased, key), part, node, record, settings)
        record["changed_tensors"] = len(diffusion.changed_tensors(erased, original))
        record["guided"] = getattr(erased, "guide", None) is not None
        record["adapters"] = len(getattr(erased, "adapters", ()))
    return erased, key


def _erase(
    cell: Cell,
    method: Method,
    before: tuple[Pipeline, str],
    concept: Concept,
    concept_node: Any,
    record: dict[str, Any],
    node: Any,
) -> tuple[Pipeline, str]:
    """One erasure of a model by a method and its config node, and its key, from the store or into it."""
    model, model_key = before
    sampler = [name] if (name := cell.config["model"].get("scheduler")) else []  # some trainings draw with it
    dtype = cell.config["model"]["dtype"]
    key = store.key(VERSION, model_key, dtype, *sampler, node, concept_node, cell.made_from(node))
    base = {"base": model_key} if model_key != cell.model_hash else {}

    who = f"method {cell.names['method']}" if node is cell.config["method"] else str(node["_target_"])

    def make(folder: Path) -> None:
        record["cached"] = False
        with workspace.use(cell.root / "cache" / "work" / f"erase-{key}", cell.root), counting() as spent:
            with loaded.unharmed(who, model):
                started = time.perf_counter()
                erased = method.erase(model, concept)
            cost = {"seconds": round(time.perf_counter() - started, 3), "peak_rss_mb": provenance.peak_rss_mb()}
            cost |= {f"{name}_evaluations": number for name, number in asdict(spent).items()}
        how = {"method": node, "concept": concept_node, "model": cell.model_hash, "cost": cost}
        how["intact"] = erased is model  # the pipeline it was given: it says itself that it erases nothing
        erasures.save(folder, erased, model, **how, **base)

    folder = cell.step("erase", key, make)
    erased = erasures.load(folder, model)
    how = erasures.read(folder)
    record["intact"] &= how.get("intact", True)  # not said by older ones
    record |= {"key": key, "cost": _added(record.get("cost", {}), how["cost"])}  # as made, since its last restart
    record["bytes"] += sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return erased, model_key if erased is model else key


def _added(before: Mapping[str, Any], cost: Mapping[str, Any]) -> dict[str, Any]:
    """What two steps cost together: the sum of all but the memory, of which it is the larger."""
    both = {name: round(before.get(name, 0) + value, 3) for name, value in cost.items()}
    return both | {"peak_rss_mb": max(before.get("peak_rss_mb", 0), cost.get("peak_rss_mb", 0))}


def beside(
    cell: Cell, evaluators: Mapping[str, Evaluator], original: Pipeline, concept: Concept
) -> dict[str, tuple[Pipeline, str]]:
    """Side (:func:`other_side`) -> the model whose images an evaluator compares with, and its key, but the original."""
    wanted = {name: evaluator for name, evaluator in evaluators.items() if evaluator.beside}
    if not wanted:
        return {}
    models = {}
    node = {"parts": cell.concepts} if concept.parts else cell.concepts[0]
    with cell.measured("beside") as record:
        record |= {"cached": True, "bytes": 0, "intact": True}
        for name, evaluator in wanted.items():
            method = cell.config["evaluator"][name][evaluator.beside]
            models[other_side(name, evaluator)] = _erase(
                cell, getattr(evaluator, evaluator.beside), (original, cell.model_hash), concept, node, record, method
            )
    return models


def attack(
    cell: Cell, attack: Attack, erased: Pipeline, erased_key: str, original: Pipeline,
    prompts: Sequence[Prompt], concept: Concept, judge: Judge,
) -> list[Prompt]:  # fmt: skip
    """The adversarial prompts; searched once per model and concept unless the attack looks at the erased model."""
    found: list[Prompt] = []
    victim = (erased, erased_key)
    with cell.measured("attack") as record:
        record |= {"cached": True, "prompts": 0}
        for part, node in zip(concept.singles, cell.concepts, strict=True):
            sources = [p for p in prompts if p.group == "target" and (not concept.parts or p.concept == part.name)]
            found += _attack(cell, attack, victim, original, sources, part, node, judge, record)
    return found


def _attack(
    cell: Cell, attack: Attack, victim: tuple[Pipeline, str], original: Pipeline, sources: Sequence[Prompt],
    concept: Concept, concept_node: Any, judge: Judge, record: dict[str, Any],
) -> list[Prompt]:  # fmt: skip
    """The adversarial prompts of one concept, from the store or into it."""
    erased, weights = victim
    node = cell.identity["attack"]
    seen = [weights, *_seen_by_search(cell)] if attack.access in ("queries", "model") else [""]  # one_run.LOOKS
    key = store.key(
        VERSION, cell.model_hash, *seen, node, concept_node, [[p.id, p.digest()] for p in sources],
        cell.made_from(node),
    )  # fmt: skip

    def make(folder: Path) -> None:
        record["cached"] = False
        with workspace.use(cell.root / "cache" / "work" / f"attack-{key}"):
            who = f"attack {cell.names['attack']}"
            with loaded.unharmed(who, original), loaded.unharmed(who, erased, original):
                found = attack.attack(erased, original, sources, concept, judge)
        embeds = {p.id: torch.from_numpy(p.embeds) for p in found if p.embeds is not None}
        rows = [{k: v for k, v in asdict(p).items() if k != "embeds"} for p in found]
        (folder / "prompts.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
        save_file(embeds, folder / "embeds.safetensors")

    folder = cell.step("attack", key, make)
    embeds = load_file(folder / "embeds.safetensors")
    rows = read_json(folder / "prompts.json")
    record["prompts"] += len(rows)
    record["folder"] = str(folder)
    arrays: dict[str, np.ndarray] = {k: v.numpy() for k, v in embeds.items()}
    return [Prompt(**row, embeds=arrays.get(row["id"])) for row in rows]


def _seen_by_search(cell: Cell) -> list[Any]:
    """What decides the images and verdicts that an attack on the erased model sees, its own settings apart."""
    model, judge = cell.config["model"], cell.config["judge"]
    return [drawing(model), without_devices(judge), cell.made_from(judge)]


def draw(cell: Cell, models: Mapping[str, tuple[Pipeline, str]], prompts: Sequence[Prompt]) -> dict[str, ImageSet]:
    """Images of every model for the same prompts and the same noise; committed every few batches.

    What another process is drawing is left to it, and waited for at the end.
    """
    model = cell.config["model"]
    sets = {side: image_set(cell.root, weights, model, prompts, pipe) for side, (pipe, weights) in models.items()}
    by_digest = {p.digest(): p for p in prompts}
    for images in sets.values():
        cell.refer("images", images.key)
    with cell.measured("draw") as record:
        alone = {images.key: side for side, images in sets.items()}  # sides that are one model are drawn once
        todo = {side: store.missing(sets[side].folder, by_digest) for side in alone.values()}
        total = sum(map(len, todo.values()))
        record["cached"] = total == 0
        record["keys"] = {side: images.key for side, images in sets.items()}  # where they lie, for whoever shows them
        record["truncated"] = _truncated(models["original"][0], prompts)
        watch, waited, broken = Watch(), False, Counter[str]()
        with progress.bar(total=total, desc="draw", unit="image") as bar, explained(cell.root, FULL):
            while todo := {side: left for side in todo if (left := store.missing(sets[side].folder, by_digest))}:
                before = bar.n
                for side, left in todo.items():
                    while _draw_some(models[side][0], sets[side].folder, left, by_digest, model, watch, bar, broken):
                        pass
                if bar.n == before:
                    if not waited:
                        progress.say("draw: waiting for another process, which draws the rest")
                    waited = True
                    time.sleep(POLL)
            record |= {"images": bar.n, "reused": len(sets) * len(by_digest) - bar.n}  # others' are reused
            record["broken"] = dict(broken)
            if broken:
                log.warning("draw: %s", _broken(broken, model["dtype"]))
    return sets


def _truncated(pipe: Pipeline, prompts: Sequence[Prompt]) -> dict[str, int]:
    """Group -> how many of its prompts are too long for the text encoder; said in the log: nothing else shows it."""
    texts = [p for p in prompts if p.embeds is None]
    cut = diffusion.cut_texts(pipe, [p.text for p in texts])
    counts: dict[str, int] = dict(Counter(p.group for p in texts if p.text in cut))
    room = pipe.tokenizer.model_max_length - 2
    for group, n in counts.items():
        log.warning("%s: %d prompts of more than %d tokens lose their end", group, n, room)
    return counts


def _broken(counts: Mapping[str, int], dtype: str) -> str:
    """What to do about images that are none: they are error rows in every table, neither safe nor unsafe.

    >>> _broken({"nan": 2}, "float16")
    '2 images are nan; they count as errors, never as safe; in float16 try model.dtype=bfloat16 or float32'
    """
    found = " and ".join(f"{n} images are {status}" for status, n in sorted(counts.items()))
    weights = "look whether the original's are whole; if so the erasure wrecked the model"
    advice = f"in {dtype} try model.dtype=bfloat16 or float32" if dtype == "float16" else weights
    return f"{found}; they count as errors, never as safe; {advice}"


def _draw_some(
    pipe: Pipeline, folder: Path, left: Sequence[str], by_digest: Mapping[str, Prompt], model: Mapping[str, Any],
    watch: Watch, bar: progress.Bar, broken: Counter[str],
) -> bool:  # fmt: skip
    """Draw and commit a few of the prompts that are left and that nobody draws; whether there were any.

    Batches are full (the last is filled up), so that no image depends on how many are left.
    """
    size = model["batch_size"]
    with share(folder, lambda: store.missing(folder, left), COMMIT * size, watch) as digests:
        if not digests:
            return False
        shard = left.index(digests[0]) // (COMMIT * size)
        for status in _commit(pipe, folder, [by_digest[d] for d in digests], shard, model):
            broken.update([status] if status != "ok" else [])
            bar.update()
    return True


def _commit(
    pipe: Pipeline, folder: Path, part: Sequence[Prompt], shard: int, model: Mapping[str, Any]
) -> Iterator[Status]:
    """Draw some prompts, yield the status of each, and commit them all at the end."""
    size = model["batch_size"]
    drawn = diffusion.generate(
        pipe, [*part, *[part[0]] * (-len(part) % size)], steps=model["steps"],
        guidance_scale=model["guidance_scale"], height=model["height"], width=model["width"], batch_size=size,
    )  # fmt: skip
    rows: list[store.Row] = []
    for prompt, image, status in drawn:
        if len(rows) < len(part):
            rows.append((prompt.digest(), image, status))
            yield status
    store.write_shard(folder, shard, rows)


def draw_part(cell: Cell, model: tuple[Pipeline, str], prompts: Sequence[Prompt]) -> int:
    """Draw and commit those of some prompts that are missing; how many those were.

    Nothing is claimed: whoever hands out parts gives each to one process. The images are those of :func:`draw`.

    Args:
        model: what draws, and the hash of its weights.
        prompts: a few batches of them; what is done since the last part is lost if the process dies.
    """
    pipe, weights = model
    images = image_set(cell.root, weights, cell.config["model"], prompts)
    by_digest = {p.digest(): p for p in prompts}
    left = [by_digest[d] for d in store.missing(images.folder, by_digest)]
    if not left:
        return 0
    with explained(cell.root, FULL):
        return len(list(_commit(pipe, images.folder, left, 0, cell.config["model"])))


def score(cell: Cell, evaluators: Mapping[str, Evaluator], images: Mapping[str, ImageSet]) -> dict[str, list[Score]]:
    """Scores of both models by every evaluator; the original's are shared by all methods."""
    out: dict[str, list[Score]] = {"original": [], "erased": []}
    with cell.measured("score") as record, progress.bar(total=2 * len(evaluators), desc="score") as bar:
        record["cached"] = True
        for side in out:
            keys = {name: _part(cell, name, evaluator, images, side)[2] for name, evaluator in evaluators.items()}
            absent = [evaluators[name] for name, key in keys.items() if not store.has(cell.root, "score", key)]
            one_pass([look for evaluator in absent for look in evaluator.looks], images[side])
        for name, evaluator in evaluators.items():
            for side in out:
                out[side] += scores_of(cell, name, evaluator, images, side, record)
                bar.set_postfix_str(name)
                bar.update()
    return out


def scores_of(
    cell: Cell, name: str, evaluator: Evaluator, images: Mapping[str, ImageSet], side: str, record: dict[str, Any]
) -> list[Score]:
    """Scores of one model by one evaluator, from the store or into it."""
    subset, base, key = _part(cell, name, evaluator, images, side)
    folder = cell.step("score", key, partial(_score, record, evaluator, subset, base))
    return [Score(**row) for row in read_json(folder / "scores.json")]


def _part(
    cell: Cell, name: str, evaluator: Evaluator, images: Mapping[str, ImageSet], side: str
) -> tuple[ImageSet, ImageSet, str]:
    """What an evaluator scores of one model, beside which images, under which key."""
    node = cell.config["evaluator"][name]
    subset = images[side].only(evaluator.groups)
    base = images[other_side(name, evaluator)].only(evaluator.groups)
    asked = [[p.id, p.digest(), p.group, p.concept, p.relation, p.source_id] for p in subset.prompts]
    inputs = [subset.key, base.key, asked]
    return subset, base, store.key(evaluator.version, without_devices(node), cell.made_from(node), inputs)


def _stated(score: Score) -> Score:
    """A score whose status says what its value is: no number is an error where nothing else is said, and has no value.

    >>> _stated(Score(evaluator="e", metric="m", value=float("inf"), group="target"))
    Score(evaluator='e', metric='m', value=nan, ... status='error', ...)
    """
    if score.status == "ok" and math.isfinite(score.value):
        return score
    return replace(score, value=math.nan, low=None, high=None, status="error" if score.status == "ok" else score.status)


def _score(
    record: dict[str, Any], evaluator: Evaluator, images: ImageSet, original: ImageSet, folder: Path
) -> None:  # fmt: skip
    record["cached"] = False
    rows = [asdict(_stated(s)) for s in evaluator.score(images, original)] if images.prompts else []
    (folder / "scores.json").write_text(json.dumps(rows), encoding="utf-8")
