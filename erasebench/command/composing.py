"""Compose the config of a cell as the command does, from anywhere: a notebook, a test, another Hydra program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from erasebench import conf_folder
from erasebench.command.typed import Typed


@contextmanager
def session(folders: Sequence[Path] = ()) -> Iterator[None]:
    """Hydra with these config folders; what another program had set up is there again afterwards.

    Args:
        folders: further ones first, the primary config's last; ours alone if there are none.
    """
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    import erasebench.composed_configs  # noqa: F401  registers what method=a+b chooses

    *further, own = folders or (conf_folder(),)
    version.setbase("1.3")
    instance = GlobalHydra.instance()
    before, instance.hydra = instance.hydra, None
    try:
        path = create_config_search_path(str(own.resolve()))
        for folder in further:
            anchor = SearchPathQuery(provider="schema")
            path.prepend(provider="command-line", path=f"file://{folder.resolve()}", anchor=anchor)
        Hydra.create_main_hydra2(task_name="erasebench", config_search_path=path)
        yield
    finally:
        instance.hydra = before


def compose(overrides: Sequence[str], name: str = "config") -> DictConfig:
    """The composed config with its node ``hydra``, as a cell has it; within a :func:`session`."""
    from hydra import compose as composed

    return composed(name, list(overrides), return_hydra_config=True)


def without_hydra(cfg: DictConfig) -> DictConfig:
    """The part of a composed config that the run is given, with its interpolations."""
    return DictConfig({k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"}, flags={"struct": True})


def composed(typed: Typed, overrides: Sequence[str]) -> DictConfig:
    """The composed and checked config of one cell, with its node ``hydra``; within a session.

    Raises:
        ValueError: with the settings there are, for one there is not.
    """
    from hydra.errors import ConfigCompositionException

    try:
        cfg = compose(overrides, typed.name)
    except ConfigCompositionException as error:
        key = str(error).partition("Could not override '")[2].partition("'")[0]
        if not key or "No match in the defaults list" in str(error):
            raise
        fine = [o for o in overrides if o.lstrip("+~").partition("=")[0].partition("@")[0] in typed.groups]
        raise ValueError(typed.unknown_setting(key, compose(fine, typed.name))) from error
    typed.check_composed(without_hydra(cfg))
    return cfg


@contextmanager
def as_job(cfg: DictConfig) -> Iterator[DictConfig]:
    """Make a composed config Hydra's current job, so that a run is named as on the command line."""
    from hydra.core.hydra_config import HydraConfig

    instance = HydraConfig.instance()
    before, instance.cfg = instance.cfg, None
    instance.set_config(cfg)
    try:
        yield without_hydra(cfg)
    finally:
        instance.cfg = before
