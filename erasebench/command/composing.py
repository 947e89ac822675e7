"""Compose the config of a cell as the command does, from anywhere: a notebook, a test, another Hydra program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from erasebench import conf_folder


@contextmanager
def _hydra(folder: Path) -> Iterator[None]:
    """Hydra with ``folder`` as its configs; what another program had set up is there again afterwards."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    instance = GlobalHydra.instance()
    before, instance.hydra = instance.hydra, None
    try:
        with initialize_config_dir(str(folder), version_base="1.3", job_name="erasebench"):
            yield
    finally:
        instance.hydra = before


def compose(overrides: Sequence[str], *, name: str = "config", folder: Path | None = None) -> DictConfig:
    """The composed config with its node ``hydra``, as a cell has it.

    Args:
        overrides: as typed, ``["method=uce", "model.steps=3"]``.
        name: of the primary config.
        folder: of the configs; ours if None. A further one is given by the override ``hydra.searchpath``.
    """
    from hydra import compose as composed

    with _hydra((folder or conf_folder()).resolve()):
        return composed(name, list(overrides), return_hydra_config=True)


def without_hydra(cfg: DictConfig) -> DictConfig:
    """The part of a composed config that the run is given, with its interpolations and its struct flag."""
    return DictConfig({k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"}, flags={"struct": True})


@contextmanager
def as_job(cfg: DictConfig) -> Iterator[DictConfig]:
    """Make a composed config Hydra's current job, so that a run is named as on the command line."""
    from hydra.core.hydra_config import HydraConfig

    instance = HydraConfig.instance()
    before = instance.cfg
    instance.cfg = None
    instance.set_config(cfg)
    try:
        yield without_hydra(cfg)
    finally:
        instance.cfg = before
