"""What one run is: its resolved config, its names, its place, its hashes, and what makes two runs equal."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from erasebench import labels, progress, several, store
from erasebench.building import without_extras
from erasebench.report.runs import find_run
from erasebench.store import provenance
from erasebench.store.files import locate
from erasebench.store.images import ImageSet
from erasebench.store.sources import folder_hash, input_hashes, source_hash, targets
from erasebench.types import Prompt

log = logging.getLogger(__name__)

VERSION = 1  # of the run's steps; raise it when their results change
IDENTITY = ("model", "concept", "method", "attack", "evaluator", "judge", "clip", "features", "prompts", "seed")
FREE = {"model": ("batch_size", "device"), "attack": ("batch_size",)}  # settings that do not change results
GROWING = ("n", "limit")  # settings of prompts that add to a run instead of making another
DRAWING = ("steps", "guidance_scale", "height", "width", "dtype")
SAMPLER = "erasebench.diffusion.sampling.generate"


def _labels(_root_: DictConfig) -> list[str]:
    """``${labels:}``: the concepts and everything they are compared with, the label set of a zero-shot judge."""
    concepts = [_root_.concept, *map(several.node, _root_.get("also") or [])]
    related = [name for concept in concepts for names in concept.get("neighbours", {}).values() for name in names]
    return list(dict.fromkeys([*(concept["name"] for concept in concepts), *related]))


OmegaConf.register_new_resolver("labels", _labels, replace=True)


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
    """

    config: dict[str, Any]
    names: dict[str, str]
    root: Path
    folder: Path
    model_hash: str = ""
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
        ValueError, OSError: an impossible setting; a results folder that is not writable; other settings in the folder.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ValueError(f"{missing[0]} must be given, it has no default; got nothing; add {missing[0]}=VALUE")
    also = several.nodes(OmegaConf.to_container(cfg, resolve=False))  # before ${labels:} looks them up
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config["also"] = also
    check_numbers(config)
    leave_out_extras(config)
    if origin := config["attack"].get("run"):
        config["attack"]["run"] = str(find_run(origin))
    names, place = _names(cfg, config)
    if names["recipe"] not in ("paper", "paper changed"):
        several.check_kinds(names["recipe"], [config["concept"], *config["also"]])
    root = store.check_writable(locate(config["results"]))
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
    """Values that cannot be right anywhere: a negative seed, steps or batch size below one."""
    for path, least in (("seed", 0), ("model.steps", 1), ("model.batch_size", 1)):
        value = config
        for part in path.split("."):
            value = value[part]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{path} must be an integer >= {least}; got {value!r}")


# --- names ---


def _names(cfg: DictConfig, config: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Names for the tables, and the folders below ``runs``: model, concept, method, attack with settings."""
    picked = labels.choices()
    groups = [g for g in picked if "/" not in g and g != "experiment"]
    reference = labels.named(picked, groups) if picked else cfg

    def changed(group: str, *but: str) -> dict[str, Any]:
        return labels.differences(cfg, reference, group, but)

    word = {g: str(picked.get(g) or config[g].get("name", g)) for g in ("concept", "method", "attack")}
    method, edited = _method(config, word["method"], changed)
    spent = changed("attack", "run", "name", *FREE["attack"])
    origin = config["attack"].get("run")
    attack = word["attack"] + (f"-{origin_name(origin, config['model']['name'])}" if origin else "")
    attack = labels.label(attack, spent)
    concept = several.name(labels.label(word["concept"], changed("concept")), config)
    own = str(labels.named(picked, ["model"]).hydra.runtime.choices["adaptation"]) if picked else "paper"
    around = changed("model", "name", "path", "revision", "blur_unsafe", *FREE["model"])
    around |= _surroundings(picked, changed)
    names = {
        "model": str(config["model"]["name"]), "concept": concept, "method": method,
        "recipe": config["recipe"] + (" changed" if edited else ""),
        "attack": attack, "budget": _budget(config, own, word["attack"]) + (" changed" if spent else ""),
        "settings": labels.spelled(around),
    }  # fmt: skip
    literal = [
        _literal(config, own, word["method"], "recipe"), _literal(config, own, word["attack"], "budget", "strength")
    ]  # fmt: skip
    folders = [names["model"], *(labels.folder_name(names[k]) for k in ("concept", "method", "attack"))]
    folders[2], folders[3] = folders[2] + literal[0], folders[3] + literal[1]
    if around:
        folders[3] += "@" + labels.folder_name(names["settings"])
    return names, folders


def _method(config: Mapping[str, Any], word: str, changed: Callable[..., dict[str, Any]]) -> tuple[str, bool]:
    """The method's label, and whether it is other than its recipe; ``name=``, ``method.name=`` stand for changes."""
    found, own = changed("method"), config["method"].get("name")
    edited = bool({k: v for k, v in found.items() if k not in ("name", "path", "revision") or own is None})
    name = config.get("name") or (own if "name" in found else None)
    for text in (name, own):
        if text is not None and not re.fullmatch(r"[\w.+-]+", str(text)):
            key = "name" if config.get("name") else "method.name"
            raise ValueError(f"{key} must be letters, digits, dots, plus and dashes; got {text!r}; rename it")
    return (str(name) if name else labels.label(str(own or word), found)), edited


def _surroundings(picked: Mapping[str, str], changed: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """What differs from the model's own prompts, judge and feature networks."""
    if not picked:
        return {}
    own = labels.named(picked, ["model", "concept"]).hydra.runtime.choices
    found: dict[str, Any] = {}
    for group in ("prompts", "judge", "clip", "features"):
        if picked.get(group) != own.get(group):
            found[group] = picked.get(group)
        found |= {f"{group}.{k}": v for k, v in changed(group, *(GROWING if group == "prompts" else ())).items()}
    return found


def _budget(config: Mapping[str, Any], adaptation: str, attack: str) -> str:
    """Name of what the attack may spend, with that of its strength where a model could have changed it."""
    budget, strength = str(config["budget"]), str(config["strength"])
    told = has_adaptation("strength", attack, adaptation) and strength != budget
    return f"{budget}, strength {strength}" if told else budget


def _literal(config: Mapping[str, Any], adaptation: str, word: str, *groups: str) -> str:
    """``-paper`` for a folder where this model has settings of its own and the published ones are run."""
    able = [g for g in groups if has_adaptation(g, word, adaptation)]
    literal = [g for g in able if config[g] == "paper"]
    return "" if not literal else "-paper" if literal == able else f"-paper_{'_'.join(literal)}"


def has_adaptation(group: str, name: str, adaptation: str) -> bool:
    """Whether a model's adaptation has its own ``recipe``, ``strength`` or ``budget`` of a method or attack.

    >>> has_adaptation("recipe", "uce", "emoji"), has_adaptation("recipe", "uce", "sd14")
    (True, False)
    """
    return any((folder / group / f"{name}_{adaptation}.yaml").is_file() for folder in several.config_folders())


def origin_name(run: str, model: str) -> str:
    """What the name of an attack that reads another run adds: its method and attack, and its model if it is another.

    >>> origin_name("results/runs/emoji/cat/uce/reseed/seed0", "emoji"), origin_name("a/found.csv", "emoji")
    ('uce-reseed', 'found')
    """
    parts = Path(run).parts
    if len(parts) < 5 or Path(run).suffix == ".csv":
        return Path(run).stem
    return "-".join([*([] if parts[-5] == model else [parts[-5]]), *parts[-3:-1]])


# --- hashes and places ---


def model_hash(model: Mapping[str, Any], memory: Path | None) -> str:
    """Identity of the weights: hash of a folder's files, or hub id and revision (loading checks both)."""
    path = locate(model["path"])
    return (
        folder_hash(path, memory) if (path / "model_index.json").exists() else store.key(str(path), model["revision"])
    )


def image_set(root: Path, weights: str, model: Mapping[str, Any], prompts: Sequence[Prompt]) -> ImageSet:
    """The images of a model with these weights (their hash) under the config's drawing settings."""
    key = store.key(VERSION, weights, {k: model[k] for k in DRAWING}, source_hash([SAMPLER]))
    return ImageSet(key=key, folder=store.image_folder(root, key), prompts=tuple(prompts))


# --- a run that grows ---


def grow(cell: Cell) -> None:
    """Add what the folder's run measured already: its evaluators, and as many prompts of each group.

    Raises:
        ValueError: the folder holds a run with other settings under this name.
    """
    try:
        before = json.loads((cell.folder / "run.json").read_text(encoding="utf-8"))["identity"]
        a, b = (_fixed(json.loads(json.dumps(identity))) for identity in (before, cell.identity))
        evaluators, prompts = before["evaluator"], before["prompts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if a != b:
        was, now = dict(labels.leaves(a)), dict(labels.leaves(b))
        names = sorted(k for k in {*was, *now} if was.get(k) != now.get(k))
        differ = [f"{k} was {was.get(k)} and is {now.get(k)}" for k in names]
        raise ValueError(
            f"{cell.folder} holds a run of this name with other settings: {'; '.join(differ[:4])}; give this one a "
            "name of its own (name=NAME, of a checkpoint method.name=NAME, of a model model.name=NAME), or delete it"
        )
    config = cell.config
    config["evaluator"] = {
        **{k: v for k, v in evaluators.items() if k not in config["evaluator"]},
        **config["evaluator"],
    }
    for key in GROWING:
        if key in config["prompts"]:
            config["prompts"][key] = _more(config["prompts"][key], prompts.get(key))


def _fixed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal in one folder: everything but what may grow."""
    prompts = {k: v for k, v in identity["prompts"].items() if k not in GROWING}
    return {k: v for k, v in identity.items() if k != "evaluator"} | {"prompts": prompts}


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
