"""What ``method=uce+sld_max`` chooses: a config that no file holds, made of those of its methods.

Hydra asks its sources for ``method/uce+sld_max`` and, by the primary config, for ``recipe/uce+sld_max_emoji``. The
first is a list of the methods' own yamls, each below ``method.stages.<name>``; the second holds their recipes for this
model, moved there too. So settings are typed as ``method.stages.uce.lamb=1``, and sweeps, labels and hashes need
know nothing. Importing this module registers the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from erasebench import conf_folder
from erasebench.composition import BETWEEN

SCHEME = "composed"


class ComposedConfigs(ConfigSource):
    """Hydra's source of ``method/a+b`` and ``recipe/a+b_model``."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        found = composed(config_path)
        assert found is not None  # Hydra asks is_config first
        package = "_global_" if config_path.startswith("recipe/") else None
        return ConfigResult(
            config=found, path=f"{SCHEME}://", provider=self.provider, header={"package": package}
        )  # fmt: skip

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return False

    def is_config(self, config_path: str) -> bool:
        return composed(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []


class ComposedSearchPath(SearchPathPlugin):
    """Puts the source behind all folders, so that a yaml of that name comes first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="erasebench", path=f"{SCHEME}://")


def composed(path: str) -> DictConfig | None:
    """The config of a group and its choice, ``method/uce+sld_max``, or None where one of its parts has no yaml."""
    group, _, name = path.removesuffix(".yaml").rpartition("/")
    if BETWEEN not in name or group not in ("method", "recipe"):
        return None
    *first, last = name.split(BETWEEN)
    if group == "method":
        names = [*first, last]
        if len(set(names)) < len(names) or any(_file("method", n) is None for n in names):
            return None
        stages = [f"{n}@stages.{n}" for n in names]
        return OmegaConf.create({"defaults": ["_self_", *stages], "_target_": "erasebench.composition.Composed"})
    cuts = [i for i in range(len(last), 0, -1) if last[i:].startswith("_") and _file("method", last[:i])]
    if not cuts:
        return None
    names, model = [*first, last[: cuts[0]]], last[cuts[0] + 1 :]
    recipes = {n: _recipe(f"{n}_{model}") for n in names if _file("recipe", f"{n}_{model}")}
    if not recipes:
        return None
    settings = {name: recipe.method for name, recipe in recipes.items()}
    title = BETWEEN.join(str(recipe.recipe) for recipe in recipes.values())
    return OmegaConf.create({"recipe": title, "method": {"stages": settings}})


def _recipe(name: str) -> Any:
    """A recipe with what it takes over from its siblings."""
    file = _file("recipe", name)
    own: Any = OmegaConf.load(file) if file else OmegaConf.create()
    taken = [_recipe(str(sibling)) for sibling in own.pop("defaults", []) if sibling != "_self_"]
    return OmegaConf.merge(*taken, own)


def _file(group: str, name: str) -> Path | None:
    return next((f for folder in _folders() if (f := folder / group / f"{name}.yaml").is_file()), None)


def _folders() -> Iterator[Path]:
    """Config folders of the Hydra that is composing, in their order of precedence."""
    hydra = GlobalHydra.instance().hydra
    for place in hydra.config_loader.get_search_path().get_path() if hydra else ():
        if place.path and place.path.startswith("file://"):
            yield Path(place.path.removeprefix("file://"))
    yield conf_folder()


Plugins.instance().register(ComposedConfigs)
Plugins.instance().register(ComposedSearchPath)
