"""What a run or a published protocol reads, whether it is on this machine, and where to get it; nothing is run.

    erasebench needs experiment=rece_nudity_sd14
    erasebench needs model=sd14 method=checkpoint method.path=mine.safetensors attack=nudity142

Takes everything that a run takes. Fetched files lie in the folder that ``data=`` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from erasebench.command.arguments import command
from erasebench.command.composing import as_job, composed, session
from erasebench.command.typed import Typed

USAGE = "usage: erasebench needs experiment=NAME | [model=NAME] [method=NAME] [attack=NAME] ..."


def resolved(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The config of the cell, and the keys that are still to be given, which are None in it.

    Raises:
        ValueError: a mistake in what was given.
    """
    typed = Typed(tuple(arguments))
    typed.check()
    with session(typed.places), as_job(composed(typed, typed.overrides)) as cfg:
        absent = sorted(OmegaConf.missing_keys(cfg))
        for key in absent:
            OmegaConf.update(cfg, key, None, force_add=True)
        config: Any = OmegaConf.to_container(cfg, resolve=True)
    return config, absent


def listing(arguments: Sequence[str]) -> str:
    """The text that ``erasebench needs`` prints."""
    from erasebench.preflight import needs

    config, absent = resolved(arguments)
    lines = [f"to be given   {key}=" for key in absent]
    for need in needs(config):
        state = "there" if need.there else {"download": "on first use"}.get(need.kind, "missing")
        lines.append(f"{state:<13} {need.key}: {need.what}" + (f"\n{'':<14}{need.get}" if need.get else ""))
    return "\n".join(lines) or "nothing but what is installed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list; returns the exit code."""
    return command(USAGE, __doc__, arguments, listing)
