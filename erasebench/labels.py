"""Labels that cannot lie: what a row is called is derived from how its settings differ from the named ones.

The named settings of a group (``method=uce``) are composed anew from the choices alone, without anything that was typed
or that an experiment sets, and resolved in the run's own config, so that a setting taken from elsewhere
(``steps: ${model.steps}``) is no difference of the group that takes it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, Node, OmegaConf

from erasebench import conf_folder

SHOWN = 4  # differences that a label spells out; more are counted and told apart by a hash


def choices() -> dict[str, str]:
    """Group -> option of the running Hydra job; empty outside of one."""
    from hydra.core.hydra_config import HydraConfig

    found = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    return {str(k): str(v) for k, v in found.items() if v is not None and not str(k).startswith("hydra/")}


@lru_cache(maxsize=64)
def _compose(overrides: tuple[str, ...], folders: tuple[str, ...]) -> DictConfig:
    """The config of these choices, from the running job's own search path where there is one."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    import erasebench.composed_configs  # noqa: F401  registers what method=a+b chooses

    running = GlobalHydra.instance().is_initialized()
    with nullcontext() if running else initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


def named(groups: Mapping[str, str], wanted: Collection[str]) -> DictConfig:
    """What the choices ``wanted`` of ``groups`` compose to by themselves.

    Args:
        groups: see :func:`choices`.
        wanted: names of groups whose choices count; others take their defaults.
    """
    from hydra.core.hydra_config import HydraConfig

    optional = ("recipe", "strength", "budget")  # where there is no such file the choice is left to the defaults
    picked = {k: v for k, v in groups.items() if k in wanted}
    for group in optional:
        if group in picked and not _is_there(group, picked[group]):
            del picked[group]
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    return _compose(tuple(f"{k}={v}" for k, v in sorted(picked.items())), tuple(s.path for s in sources))


def _is_there(group: str, option: str) -> bool:
    from erasebench.several import config_folders

    return any((folder / group / f"{option}.yaml").is_file() for folder in config_folders())


def differences(config: DictConfig, reference: DictConfig, group: str, but: Collection[str] = ()) -> dict[str, Any]:
    """Settings of ``group`` that are not the reference's, by dotted name below the group.

    Args:
        config: the run's own config, unresolved.
        reference: see :func:`named`.
        group: top-level key of both.
        but: names that are no settings (a display name, a folder).
    """
    own, named = (_plain(one._get_node(group)) for one in (config, reference))
    if own == named:  # so they resolve to the same here, and most groups of most runs do
        return {}
    there = OmegaConf.create(_plain(config) | {group: named})
    a, b = _resolved(config, group), _resolved(there, group)
    names = [name for name in dict.fromkeys([*b, *a]) if name.split(".")[0] not in but]
    return {name: a.get(name, "none") for name in names if a.get(name, "") != b.get(name, "")}


def _plain(node: Any) -> Any:
    """A node's values with its interpolations."""
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=False)
    return node._value() if isinstance(node, Node) else node


def _resolved(config: DictConfig, group: str) -> dict[str, Any]:
    node = config[group]
    value = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return dict(leaves(value))


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


def spelled(changed: Mapping[str, Any]) -> str:
    """Differences as one short text, ``lamb=5,start.lamb=1``; of many the first, their number and a hash of all.

    >>> spelled({"lamb": 5.0, "preserve": ["", "dog"]}), spelled({"path": "/home/me/esd-cat.safetensors"})
    ('lamb=5,preserve=[,dog]', 'path=esd-cat')
    """
    parts = [f"{name.removesuffix('._target_')}={_text(value)}" for name, value in changed.items()]
    text = ",".join(parts[:SHOWN])
    if len(parts) > SHOWN or len(text) > 100:
        kept = parts[: SHOWN - 1] if len(",".join(parts[: SHOWN - 1])) <= 90 else []
        digest = hashlib.sha256(repr(sorted(changed.items())).encode()).hexdigest()[:6]
        text = ",".join([*kept, f"{len(parts) - len(kept)} {'more' if kept else 'changed'} {digest}"])
    return text


def label(name: str, changed: Mapping[str, Any]) -> str:
    """A name with what differs from what it names: ``uce[lamb=5]``.

    >>> label("uce", {}), label("uce", {"lamb": 0.1})
    ('uce', 'uce[lamb=0.1]')
    """
    return f"{name}[{spelled(changed)}]" if changed else name


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(v) for v in value) + "]"
    if isinstance(value, str) and "/" in value:
        return Path(value).stem
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def folder_name(label: str) -> str:
    """A label as a folder that neither a shell nor Hydra reads anything into; what is lost is told by a hash.

    >>> folder_name("uce[lamb=0.1,epochs=2]"), folder_name("cat+dog")
    ('uce@lamb-0.1@epochs-2', 'cat+dog')
    """
    text = label.replace("[", "@", 1).replace("[", "").replace("]", "").replace(",", "@").replace("=", "-")
    plain = re.sub(r"[^\w.+@-]", "-", text)
    if plain != text or len(plain) > 120:
        plain = f"{plain[:100]}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
    return plain
