"""What a command line would do, and nothing of it: cells, images, model evaluations, hours, disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from erasebench import costs
from erasebench.command.composing import as_job


def plan(cells: Sequence[DictConfig], labels: Sequence[str]) -> str:
    """The text of ``--dry-run``: one line a cell where there are several, then what all of them take together.

    What a cell lacks is not looked for here (``python -m erasebench.doctor`` does); settings that are still to be given
    are named.

    Args:
        cells: composed, with their node ``hydra``.
        labels: what sets each apart, or none.
    """
    configs: list[dict[str, Any]] = []
    absent: dict[str, None] = {}
    for cfg in cells:
        with as_job(cfg) as part:
            for key in sorted(OmegaConf.missing_keys(part)):
                absent[key] = None
                OmegaConf.update(part, key, None, force_add=True)
            config: Any = OmegaConf.to_container(part, resolve=True)
        configs.append(config)
    root = Path(str(configs[0]["results"])).expanduser()
    lines = [f"{len(configs)} cell{'s' * (len(configs) > 1)}"]
    if len(configs) > 1:
        for label, config in zip(labels, configs, strict=True):
            found = costs.cost([config], root)
            lines.append(f"  {label}: at most {found.images} images, {found.evaluations} evaluations")
    lines += costs.lines(configs, root)
    lines += [f"to be given: {key}=" for key in absent]
    return "\n".join([*lines, "nothing was run"])
