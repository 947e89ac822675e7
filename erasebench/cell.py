"""What one run is: its resolved config, its names, its place, its hashes, and what makes two runs equal."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from erasebench import fields, labels, naming, progress, several, store
from erasebench.building import without_extras
from erasebench.limits import read_text
from erasebench.naming import FREE, GROWING
from erasebench.prompts.wording import label_texts
from erasebench.rebuilding import check
from erasebench.report.runs import find_run, opened
from erasebench.store import provenance
from erasebench.store.files import locate
from erasebench.store.images import ImageSet
from erasebench.store.sources import folder_hash, input_hashes, source_hash, targets
from erasebench.types import KINDS, SAMPLERS, Pipeline, Prompt

log = logging.getLogger(__name__)

MOST_STEPS, MOST_AT_ONCE = 100_000, 4096  # beyond which a number is a slip of the pen
MOST_SEED = 2**63 - 1  # of torch's generators
VERSION = 1  # of the run's steps; raise it when their results change
IDENTITY = ("model", "concept", "method", "attack", "evaluator", "judge", "clip", "features", "prompts", "seed")
SOURCES = ("prompts", "kept")
DRAWING = ("steps", "guidance_scale", "height", "width", "dtype")
DRAWN_BY = ("scheduler", "vae_tiling")  # decide images too; None and not named are the same, the model's own
LOOKING = ("evaluator", "judge", "clip", "features")  # what looks at images, wherever its networks compute
SAMPLER = "erasebench.diffusion.sampling.generate"


def _labels(_root_: DictConfig) -> list[str]:
    """``${labels:}``: the concepts and everything they are compared with, the label set of a zero-shot judge."""
    concepts = [_root_.concept, *map(several.node, _root_.get("also") or [])]
    related = [name for concept in concepts for names in concept.get("neighbours", {}).values() for name in names]
    return list(dict.fromkeys([*(concept["name"] for concept in concepts), *related]))


def _label_texts(labels: Sequence[str], template: str | None, _root_: DictConfig) -> list[str]:
    """``${label_texts:${.labels},${.template}}``: what a zero-shot judge compares an image with, one text a label."""
    concepts = [_root_.concept, *map(several.node, _root_.get("also") or [])]
    return label_texts(list(labels), template, concepts)


OmegaConf.register_new_resolver("labels", _labels, replace=True)
OmegaConf.register_new_resolver("label_texts", _label_texts, replace=True)


@dataclass
class Cell:
    """One run: its resolved config, its names in every table, its place, its hashes, and what each step cost.

    Args:
        config: resolved, JSON values; paths as they were typed.
        names: model, concept, method, recipe, attack, budget and settings as they stand in the tables.
        root: results folder.
        folder: of this run below it.
        model_hash: of the model's weights and config.
        steps: what each step cost, filled while it runs.
        stored: step -> keys in the store that the run refers to, filled while it runs.
    """

    config: dict[str, Any]
    names: dict[str, str]
    root: Path
    folder: Path
    model_hash: str = ""
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    stored: dict[str, list[str]] = field(default_factory=dict)

    def step(self, name: str, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of a step's result in the store (:func:`erasebench.store.step`), which this run refers to."""
        self.refer(name, key)
        return store.step(self.root, name, key, make)

    def refer(self, name: str, key: str) -> None:
        """Note that this run needs what the store has under a key."""
        known = self.stored.setdefault(name, [])
        known.extend([key] if key not in known else [])

    @property
    def identity(self) -> dict[str, Any]:
        """The part of the config that decides the results."""
        part = {k: self.config[k] for k in IDENTITY}
        if self.config.get("kept"):
            part |= {"kept": self.config["kept"]}
        if self.config["also"]:
            part |= {k: self.config[k] for k in ("also", "together")}
        free = {group: {k: v for k, v in part[group].items() if k not in keys} for group, keys in FREE.items()}
        free |= {group: without_devices(part[group]) for group in LOOKING}
        return part | free | {"names": self.names}

    @property
    def concepts(self) -> list[dict[str, Any]]:
        """Config nodes of all concepts to erase, in order."""
        return [self.config["concept"], *self.config["also"]]

    @property
    def title(self) -> str:
        """The run in words, for pictures and the closing table."""
        n = self.names
        settings = f", {n['settings']}" if n["settings"] else ""
        return (
            f"{n['concept']} erased by {n['method']} ({n['recipe']}) from {n['model']}, attack {n['attack']}{settings}"
        )

    @property
    def memory(self) -> Path:
        """Where hashes of large files are remembered."""
        return self.root / "cache" / "fingerprints.json"

    def made_from(self, *nodes: Any) -> list[Any]:
        """What config nodes depend on beside their values: their code, and the contents of the files they name."""
        return [source_hash(targets(list(nodes))), input_hashes(list(nodes), self.memory)]

    @property
    def key(self) -> str:
        return store.key(VERSION, self.identity, self.model_hash, self.made_from(self.identity), source_hash([SAMPLER]))

    @contextmanager
    def measured(self, name: str) -> Iterator[dict[str, Any]]:
        """Record a step's seconds and the process's peak memory after it."""
        started = time.perf_counter()
        record: dict[str, Any] = {"cached": False}
        with progress.step(name, record):
            yield record
        record |= {"seconds": round(time.perf_counter() - started, 3), "peak_rss_mb": provenance.peak_rss_mb()}
        self.steps[name] = record


@dataclass(frozen=True)
class Result:
    """What a run leaves: its folder, the tidy scores, their summary, and whether all of it was there already."""

    folder: Path
    scores: pd.DataFrame
    summary: pd.DataFrame
    record: dict[str, Any]
    cached: bool


def plan(cfg: DictConfig) -> Cell:
    """Resolve the config, check what can be checked before anything is loaded, and fix the run's names and folder.

    A run that is in its folder already grows: evaluators and prompts of both are measured.

    Raises:
        ValueError, OSError: an impossible setting; other settings in the folder.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    fields.choice("concept.kind", fields.node("concept", plain["concept"]).get("kind", KINDS[0]), KINDS)
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ValueError(f"{missing[0]} must be given, it has no default; got nothing; add {missing[0]}=VALUE")
    also = several.nodes(plain)  # before ${labels:} looks them up
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config["also"] = also
    check_numbers(config)
    leave_out_extras(config)
    if origin := config["attack"].get("run"):
        config["attack"]["run"] = str(find_run(origin))
    names, place = naming.names(cfg, config)
    if names["recipe"] not in ("paper", "paper changed"):
        several.check_kinds(names["recipe"], [config["concept"], *config["also"]])
    root = locate(config["results"])
    cell = Cell(config, names, root, root.joinpath("runs", *place, f"seed{config['seed']}"))
    cell.model_hash = model_hash(config["model"], cell.memory)
    grow(cell)
    return cell


def leave_out_extras(config: dict[str, Any]) -> None:
    """Drop the evaluators whose optional packages are not installed, with a line; those asked for by name stay."""
    from hydra.core.hydra_config import HydraConfig

    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    if any(override.lstrip("+~").startswith("evaluator") for override in typed):
        return
    kept, lacking = without_extras(config["evaluator"])
    if not kept:  # an experiment that is about nothing else: building it says what to install
        return
    config["evaluator"] = kept
    for name, packages in lacking.items():
        log.warning("evaluator %s is left out: %s not installed", name, " and ".join(packages))


def check_numbers(config: Any) -> None:
    """Values that cannot be right anywhere: a negative seed, a batch of no image, a model without a path.

    Raises:
        ValueError: for the first of them.
    """
    model = fields.mapping("model", config["model"], ("name", "path", "revision", *DRAWING, "device", "batch_size"))
    fields.integer("seed", config["seed"], least=0, most=MOST_SEED)
    fields.word("model.name", model["name"])
    fields.path("model.path", model["path"])
    if model["revision"] is not None:
        fields.text("model.revision", model["revision"])
    fields.choice("model.dtype", model["dtype"], ("float32", "float16", "bfloat16", "float64"))
    if model.get("scheduler") is not None:
        fields.choice("model.scheduler", model["scheduler"], SAMPLERS)
    for switch in ("vae_tiling", "channels_last"):
        if model.get(switch) is not None:
            fields.flag(f"model.{switch}", model[switch])
    if model.get("offload") is not None:
        fields.choice("model.offload", model["offload"], ("model", "sequential"))
    fields.integer("model.steps", model["steps"], least=1, most=MOST_STEPS)
    fields.integer("model.batch_size", model["batch_size"], least=1, most=MOST_AT_ONCE)
    fields.number("model.guidance_scale", model["guidance_scale"])
    for side in ("height", "width"):
        fields.pixels(f"model.{side}", model[side])
    fields.flag("model.blur_unsafe", model.get("blur_unsafe"))
    for group in ("results", "data"):
        fields.text(group, config.get(group), empty=False)
    for group in ("concept", "method", "attack", "judge", "clip", "features", "prompts"):
        fields.node(group, config[group])
    for name, node in fields.mapping("evaluator", config.get("evaluator") or {}, least=1).items():
        fields.node(f"evaluator.{name}", node)
    if not isinstance(kept := config.get("kept"), Mapping | None):
        raise ValueError(f"kept must be a source of prompts; got {kept!r}; choose one with prompts@kept={kept}")


# --- hashes and places ---


def model_hash(model: Mapping[str, Any], memory: Path | None) -> str:
    """Identity of the weights: hash of a folder's files, or hub id and revision (loading checks both)."""
    path = locate(model["path"])
    return (
        folder_hash(path, memory) if (path / "model_index.json").exists() else store.key(str(path), model["revision"])
    )


def drawing(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model's settings that decide its images, beside its weights."""
    further = {k: model[k] for k in DRAWN_BY if model.get(k)}
    return {k: model[k] for k in DRAWING} | further


def without_devices(node: Any) -> Any:
    """A config node without the keys ``device`` in it: where a network computes decides no result.

    >>> without_devices({"model": {"device": "auto", "name": "B-32"}})
    {'model': {'name': 'B-32'}}
    """
    if isinstance(node, Mapping):
        return {k: without_devices(v) for k, v in node.items() if k != "device"}
    return [without_devices(v) for v in node] if isinstance(node, list | tuple) else node


def image_set(
    root: Path, weights: str, model: Mapping[str, Any], prompts: Sequence[Prompt], pipe: Pipeline | None = None
) -> ImageSet:
    """The images of a model with these weights (their hash) under the config's drawing settings; ``pipe``: itself."""
    key = store.key(VERSION, weights, drawing(model), source_hash([SAMPLER]))
    how = {name: model[name] for name in ("steps", "guidance_scale", "height", "width", "batch_size")} if pipe else {}
    return ImageSet(key=key, folder=store.image_folder(root, key), prompts=tuple(prompts), model=pipe, how=how)


# --- a run that grows ---


def grow(cell: Cell) -> None:
    """Add what the folder's run measured already: its evaluators, and as many prompts of each group.

    Raises:
        ValueError: the folder holds a run with other settings under this name.
    """
    try:
        before = opened(read_text(cell.folder / "run.json"))["identity"]
        a, b = (_fixed(json.loads(json.dumps(identity))) for identity in (before, cell.identity))
        evaluators = before["evaluator"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    was, now = dict(labels.leaves(a)), dict(labels.leaves(b))
    if names := sorted(k for k in {*was, *now} if was.get(k) != now.get(k)):
        differ = [f"{k} was {was.get(k)} and is {now.get(k)}" for k in names]
        raise ValueError(
            f"{cell.folder} holds a run of this name with other settings: {'; '.join(differ[:4])}; give this one a "
            "name of its own (name=NAME, of a checkpoint method.name=NAME, of a model model.name=NAME), or delete it"
        )
    config = cell.config
    check({k: v for k, v in evaluators.items() if k not in config["evaluator"]}, str(cell.folder / "run.json"))
    config["evaluator"] = {
        **{k: v for k, v in evaluators.items() if k not in config["evaluator"]},
        **config["evaluator"],
    }
    for source in SOURCES:
        for key in GROWING:
            if key in (config.get(source) or {}):
                config[source][key] = _more(config[source][key], before[source].get(key))


def _fixed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal in one folder: everything but what may grow."""
    fixed = {k: v for k, v in identity.items() if k != "evaluator"}
    return fixed | {s: {k: v for k, v in fixed[s].items() if k not in GROWING} for s in SOURCES if s in fixed}


def _more(now: Any, before: Any) -> Any:
    """The larger of two numbers of prompts, group by group; None is all of them.

    >>> _more({"target": 20, "coco": 0}, {"target": 50, "coco": 0}), _more(10, None)
    ({'target': 50, 'coco': 0}, None)
    """
    if isinstance(now, Mapping) and isinstance(before, Mapping):
        return {k: _more(now.get(k, 0), before.get(k, 0)) for k in {**before, **now}}
    if isinstance(now, int) and isinstance(before, int):
        return max(now, before)
    return now if now is None or type(now) is type(before) else before if before is None else now
