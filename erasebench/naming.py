"""What a run is called in every table, and where it lies: derived from what is not as its names say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from erasebench import fields, labels, several
from erasebench.composition import BETWEEN

FREE = {
    "model": ("batch_size", "device", "channels_last", "offload"),
    "attack": ("batch_size",),
}  # settings that do not change results
GROWING = ("n", "limit")  # settings of prompts that add to a run instead of making another
NOT_TOLD = {"judge": ("wording",), "prompts": GROWING, "kept": GROWING}  # wording follows from labels


def names(cfg: DictConfig, config: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Names for the tables, and the folders below ``runs``: model, concept, method, attack with settings."""
    picked = labels.choices()
    # what was chosen below an evaluator names no cell, and has no place where the evaluators are the usual ones
    groups = [g for g in picked if "/" not in g and "@evaluator." not in g and g != "experiment"]
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
    own = str(labels.named(picked, ["model", "concept"]).hydra.runtime.choices["adaptation"]) if picked else "paper"
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
    for key, folder in zip(("model.name", "concept", "method", "attack"), folders, strict=True):
        fields.word(key, folder, most=250)
    return names, folders


def _method(config: Mapping[str, Any], word: str, changed: Callable[..., dict[str, Any]]) -> tuple[str, bool]:
    """The method's label, and whether it is other than its recipe; ``name=``, ``method.name=`` stand for changes."""
    found, own = changed("method"), config["method"].get("name")
    edited = bool({k: v for k, v in found.items() if k not in ("name", "path", "revision") or own is None})
    name = config.get("name") or (own if "name" in found else None)
    for text in (name, own):
        if text is not None:
            fields.word("name" if config.get("name") else "method.name", text)
    return (str(name) if name else labels.label(str(own or word), found)), edited


def _surroundings(picked: Mapping[str, str], changed: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """What differs from the model's own prompts, judge and feature networks."""
    if not picked:
        return {}
    own = labels.named(picked, ["model", "concept"]).hydra.runtime.choices
    found: dict[str, Any] = {}
    for choice in ("prompts", "prompts@kept", "judge", "clip", "features"):
        group = choice.split("@")[-1]
        if picked.get(choice) != own.get(choice):
            found[group] = picked.get(choice)
        but = NOT_TOLD.get(group, ("device",))
        found |= {f"{group}.{k}": v for k, v in changed(group, *but).items()}
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

    Of composed methods, of any of them.

    >>> [has_adaptation("recipe", *names) for names in (("uce", "emoji"), ("uce", "sd14"), ("none+uce", "emoji"))]
    [True, False, True]
    """
    files = [f"{group}/{part}_{adaptation}.yaml" for part in name.split(BETWEEN)]
    return any((folder / file).is_file() for folder in several.config_folders() for file in files)


def origin_name(run: str, model: str) -> str:
    """What the name of an attack that reads another run adds: its method and attack, and its model if it is another.

    >>> origin_name("results/runs/emoji/cat/uce/reseed/seed0", "emoji"), origin_name("a/found.csv", "emoji")
    ('uce-reseed', 'found')
    """
    parts = Path(run).parts
    if len(parts) < 5 or Path(run).suffix == ".csv":
        return Path(run).stem
    return "-".join([*([] if parts[-5] == model else [parts[-5]]), *parts[-3:-1]])
