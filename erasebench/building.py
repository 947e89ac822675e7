"""Make the objects that config nodes describe."""

from __future__ import annotations

from typing import Any


def build(config: Any) -> Any:
    """Instantiate a config node; the error of the object itself is raised, not Hydra's wrapping of it."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        raise (error.__cause__ or error) from None
