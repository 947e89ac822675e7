"""Several concepts in one run: ``concept=cat also=[dog,sun] together=joint`` or ``sequence``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from erasebench import conf_folder

TOGETHER = ("joint", "sequence")


def nodes(config: Any) -> list[dict[str, Any]]:
    """Config nodes of the concepts that ``also`` names.

    Raises:
        ValueError: ``also`` is no list, names a concept that has no yaml or one that is erased already, or ``together``
            is unknown.
    """
    also, together = config.get("also") or [], config.get("together", "joint")
    if together not in TOGETHER:
        raise ValueError(f"together must be {' or '.join(TOGETHER)}; got {together!r}; correct its spelling")
    if not isinstance(also, list):
        raise ValueError(f"also must be a list of concepts; got {also!r}; write also=[{also}]")
    found = [node(entry) for entry in also]
    names = [config["concept"]["name"], *(one["name"] for one in found)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"also must name other concepts, each once; got {twice} twice; leave it out")
    return found


def node(entry: Any) -> dict[str, Any]:
    """The config of a concept: of the yaml of that name, with changes if ``entry`` is ``{name: dog, anchor: fox}``."""
    changes = dict(entry) if isinstance(entry, Mapping | DictConfig) else {"name": entry}
    stem = str(changes.get("name"))
    file = next(
        (f / "concept" / f"{stem}.yaml" for f in config_folders() if (f / "concept" / f"{stem}.yaml").is_file()), None
    )
    if file is None:
        raise ValueError(f"also must name concepts of conf/concept; got {stem!r}; add conf/concept/{stem}.yaml")
    merged: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(file), changes), resolve=True)
    return {key: value for key, value in dict(merged).items() if key != "defaults"}  # which brings the first's judge


def name(first: str, config: Mapping[str, Any]) -> str:
    """What the run is called: ``cat``, ``cat+dog`` (joint) or ``cat_then_dog`` (sequence).

    >>> name("cat", {"also": [{"name": "dog"}], "together": "sequence"})
    'cat_then_dog'
    """
    between = "_then_" if config.get("together") == "sequence" else "+"
    return between.join([first, *(one["name"] for one in config["also"])])


def check_kinds(recipe: str, concepts: Sequence[Mapping[str, Any]]) -> None:
    """A recipe with sentences for one kind of concept cannot serve styles and objects at once."""
    if len({one.get("kind", "object") == "style" for one in concepts}) > 1:
        listed = ", ".join(f"{one['name']} ({one.get('kind', 'object')})" for one in concepts)
        raise ValueError(
            f"recipe {recipe} must be for one kind of concept; got {listed}; erase styles alone, or use recipe=paper"
        )


def check_method(label: str, method: Any, config: Mapping[str, Any]) -> None:
    """A method that does not define this way of erasing several concepts is refused, with the way it does define."""
    able = getattr(method, "together", ("sequence",))
    if config["also"] and config["together"] not in able:
        advice = f"use together={able[0]}" if able else "erase one concept a run"
        raise ValueError(
            f"method {label} must define how it erases several concepts by {config['together']}; it does not; {advice}"
        )


def config_folders() -> list[Path]:
    """Config folders in their order of precedence: those of ``--config-dir``, then our own."""
    from hydra.core.hydra_config import HydraConfig

    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    return [*(Path(s.path) for s in sources if s.schema == "file" and s.path), conf_folder()]
