"""What one run is: its resolved config, its names, its place, its hashes, and what makes two runs equal."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from erasebench import conf_folder, several, store
from erasebench.building import without_extras
from erasebench.store import provenance
from erasebench.store.images import ImageSet
from erasebench.store.sources import folder_hash, input_hashes, path_hash, source_hash, targets
from erasebench.types import Prompt

log = logging.getLogger(__name__)

VERSION = 1  # of the steps in this file and of diffusion.generate; raise it when their results change


IDENTITY = (
    "model",
    "concept",
    "method",
    "recipe",
    "attack",
    "budget",
    "evaluator",
    "judge",
    "clip",
    "features",
    "prompts",
    "seed",
)


FREE = {"model": ("batch_size", "device"), "attack": ("batch_size",)}  # settings that do not change results


EMBEDDED = Path(__file__).parent / "emoji" / "weights"


def _labels(_root_: DictConfig) -> list[str]:
    """``${labels:}``: the concepts and everything they are compared with, the label set of a zero-shot judge."""
    concepts = [_root_.concept, *map(several.node, _root_.get("also") or [])]
    related = [name for concept in concepts for names in concept.get("neighbours", {}).values() for name in names]
    return list(dict.fromkeys([*(concept["name"] for concept in concepts), *related]))


OmegaConf.register_new_resolver("labels", _labels, replace=True)


@dataclass
class Cell:
    """One run: its resolved config, its place, its hashes, and what each step cost."""

    config: dict[str, Any]
    names: dict[str, str]
    root: Path
    folder: Path
    model_hash: str = ""
    judge_hash: str = ""  # of the embedded weights, which hold the judge, the contrastive model and the statistics
    method_hash: str = ""  # of the weights a method brings, "" if it brings none
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """The part of the config that decides the results."""
        part = {k: self.config[k] for k in IDENTITY}
        if self.config["also"]:
            part |= {k: self.config[k] for k in ("also", "together")}
        free = {group: {k: v for k, v in part[group].items() if k not in keys} for group, keys in FREE.items()}
        return part | free | {"names": self.names}

    @property
    def concepts(self) -> list[dict[str, Any]]:
        """Config nodes of all concepts to erase, in order."""
        return [self.config["concept"], *self.config["also"]]

    @property
    def key(self) -> str:
        sources, inputs = source_hash(targets(self.identity)), input_hashes(self.identity)
        brought = [self.method_hash] if self.method_hash else []
        return store.key(VERSION, self.identity, self.model_hash, self.judge_hash, sources, inputs, *brought)

    @contextmanager
    def measured(self, name: str) -> Iterator[dict[str, Any]]:
        """Record a step's seconds and the process's peak memory after it."""
        started = time.perf_counter()
        record: dict[str, Any] = {"cached": False}
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
    """Resolve the config, check what can be checked before anything is loaded, and fix the run's folder.

    Raises:
        ValueError, OSError: an impossible setting; a results folder that is not writable; another config in the folder.
    """
    from hydra.core.hydra_config import HydraConfig

    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ValueError(f"{missing[0]} must be given, it has no default; got nothing; add {missing[0]}=VALUE")
    also = several.nodes(OmegaConf.to_container(cfg, resolve=False))  # before ${labels:} looks them up
    config = OmegaConf.to_container(cfg, resolve=True)
    config["also"] = also
    check_numbers(config)
    leave_out_extras(config)
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    names = {g: str(choices.get(g) or config[g].get("name", g)) for g in ("concept", "method", "attack")}
    names["concept"] = several.name(names["concept"], config)
    names["method"] = str(config["method"].get("name", names["method"]))
    if not re.fullmatch(r"[\w.-]+", names["method"]):
        raise ValueError(f"method.name must be letters, digits, dots and dashes; got {names['method']!r}; rename it")
    names |= {"model": config["model"]["name"], "recipe": config["recipe"], "budget": config["budget"]}
    if origin := config["attack"].get("run"):
        names["attack"] += f"-{origin_name(origin, names['model'])}"
    if names["recipe"] != "paper":
        several.check_kinds(names["recipe"], [config["concept"], *config["also"]])
    root = store.check_writable(config["results"])
    default = names["recipe"] != "paper" or not has_recipe(names["method"], names["model"])
    method = names["method"] if default else f"{names['method']}-paper"
    folder = root / "runs" / names["model"] / names["concept"] / method / names["attack"] / f"seed{config['seed']}"
    cell = Cell(config, names, root, folder)
    cell.model_hash = model_hash(config["model"], root)
    cell.method_hash = path_hash(config["method"], root / "cache" / "fingerprints.json")
    cell.judge_hash = folder_hash(EMBEDDED, root / "cache" / "fingerprints.json")
    refuse_other_config(cell)
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
    """Values that cannot be right anywhere: a negative seed, steps or batch size below one."""
    for path, least in (("seed", 0), ("model.steps", 1), ("model.batch_size", 1)):
        value = config
        for part in path.split("."):
            value = value[part]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{path} must be an integer >= {least}; got {value!r}")


def origin_name(run: str, model: str) -> str:
    """What the name of an attack that reads another run adds: its method and attack, and its model if it is another.

    >>> origin_name("results/runs/emoji/cat/uce/reseed/seed0", "emoji"), origin_name("a/found.csv", "emoji")
    ('uce-reseed', 'found')
    """
    parts = Path(run).parts
    if len(parts) < 5 or Path(run).suffix == ".csv":
        return Path(run).stem
    return "-".join([*([] if parts[-5] == model else [parts[-5]]), *parts[-3:-1]])


def has_recipe(method: str, model: str) -> bool:
    """Whether this model has its own recipe of a method (then ``recipe=paper`` is a different run)."""
    return (conf_folder() / "recipe" / f"{method}_{model}.yaml").exists()


def model_hash(model: Mapping[str, Any], root: Path) -> str:
    """Identity of the weights: hash of a folder's files, or hub id and revision (loading checks both)."""
    path = Path(model["path"]) if model["path"] else EMBEDDED
    if (path / "model_index.json").exists():
        return folder_hash(path, root / "cache" / "fingerprints.json")
    return store.key(str(path), model["revision"])


def leaves(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in a nested config; lists are values.

    >>> list(leaves({"model": {"steps": 20, "path": None}, "seed": 0}))
    [('model.steps', 20), ('model.path', None), ('seed', 0)]
    """
    if not isinstance(config, Mapping):
        yield name, config
        return
    for key, value in config.items():
        yield from leaves(value, f"{name}.{key}" if name else str(key))


def refuse_other_config(cell: Cell) -> None:
    """A run folder belongs to one config."""
    try:
        before = json.loads((cell.folder / "run.json").read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError):
        return
    now = json.loads(json.dumps(cell.identity))
    if before != now:
        a, b = dict(leaves(before)), dict(leaves(now))
        differ = [f"{k} was {a.get(k)} and is {b.get(k)}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
        raise ValueError(
            f"{cell.folder} holds a run with another config: {'; '.join(differ[:4])}; "
            "choose another seed=, another results=DIR, or delete that folder"
        )


def image_set(root: Path, weights: str, model: Mapping[str, Any], prompts: Sequence[Prompt]) -> ImageSet:
    """The images of a model with these weights (their hash) under the config's drawing settings."""
    settings = {k: model[k] for k in ("steps", "guidance_scale", "height", "width", "dtype")}
    key = store.key(VERSION, weights, settings)
    return ImageSet(key=key, folder=store.image_folder(root, key), prompts=tuple(prompts))
