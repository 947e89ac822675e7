"""What was typed is understood or refused: every ``key=value`` is looked at before Hydra runs, and what it made after.

Hydra ignores more than it should: an unknown key is added by a ``+``, a misspelt choice of an optional group chooses
nothing, the first of two values is forgotten. Its own refusals take several lines and advise the ``+``.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from erasebench import conf_folder
from erasebench.command.choices import groups, hint, listed, nearest, stems
from erasebench.composition import BETWEEN, joined

FREE_GROUPS = ("texts", "evaluator")  # whose keys are names that a user chooses


@dataclass(frozen=True)
class Typed:
    """Overrides as typed, and the config folders they choose from, those of the user first."""

    overrides: tuple[str, ...]
    folders: tuple[Path, ...] = ()
    name: str = "config"

    def __post_init__(self) -> None:
        object.__setattr__(self, "overrides", tuple(joined(override) for override in self.overrides))

    @cached_property
    def places(self) -> tuple[Path, ...]:
        return self.folders or (conf_folder(),)

    @cached_property
    def groups(self) -> list[str]:
        return groups(self.places)

    @cached_property
    def keys(self) -> list[str]:
        """Top-level keys that a config may have: those of the primary config, and the groups."""
        file = next((f / f"{self.name}.yaml" for f in self.places if (f / f"{self.name}.yaml").is_file()), None)
        own = yaml.safe_load(file.read_text(encoding="utf-8")) if file else {}
        return sorted({*(set(own) - {"defaults", "hydra"}), *(group.split("/")[0] for group in self.groups)})

    @cached_property
    def parsed(self) -> list[Any]:
        """Hydra's reading of the overrides.

        Raises:
            ValueError: one that is no ``key=value``.
        """
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import OverrideParseException

        found = []
        for text in self.overrides:
            try:
                found += OverridesParser.create().parse_overrides([text])
            except OverrideParseException as error:
                raise ValueError(self._unreadable(text, str(error).splitlines()[0])) from None
        return found

    def _unreadable(self, text: str, reason: str) -> str:
        if "=" not in text:
            group = next((g for g in ("method", "attack", "concept", "model") if text in stems(self.places, g)), "")
            what = f"did you mean {group}={text}?" if group else "write key=value, or see erasebench --help"
            return f"{text!r} - must be key=value; got no =; {what}"
        return (
            f"{text!r} - must be key=value that Hydra can read; {reason}; "
            "put values with spaces, commas or brackets in two pairs of quotes, key='\"a b\"'"
        )

    def check(self) -> None:
        """Refuse, before anything is composed, what names nothing and what is given twice.

        Raises:
            ValueError: one line with the choices.
        """
        twice = [key for key, n in Counter(_key(o) for o in self.parsed).items() if n > 1]
        if twice:
            given = " and ".join(o.input_line for o in self.parsed if _key(o) == twice[0])
            raise ValueError(f"{twice[0]} - must be given once; got {given}; leave one of them out")
        for override in self.parsed:
            if not override.is_hydra_override():
                self._check_key(override)
                self._check_choices(override)

    def _check_key(self, override: Any) -> None:
        key: str = override.key_or_group
        top = key.split(".")[0].split("/")[0]
        if top not in self.keys:
            meant = nearest(top, self.keys)
            what = f"did you mean {key.replace(top, meant, 1)}?" if meant else "see erasebench --help"
            raise ValueError(f"{key} - must be a setting of the run ({', '.join(self.keys)}); got {top!r}; {what}")
        if "/" in key and key not in self.groups:
            raise ValueError(
                f"{key} - must be a group ({', '.join(self.groups)}); got {key!r}; {hint(key, self.groups)}"
            )
        chosen = self._chosen.get(key)
        if override.is_add() and chosen:
            raise ValueError(f"+{key} - must be written without the +, {key} is there already; write {key}=CHOICE")
        if override.is_delete() and (key in self.keys and chosen != "optional"):
            raise ValueError(f"~{key} - must not be taken away, a run needs it; choose another {key}=")
        if chosen == "one" and isinstance(override.value(), list):
            raise ValueError(f"{key} - must be one choice; got {override.input_line}; with -m, {key}=A,B runs each")

    @cached_property
    def _chosen(self) -> dict[str, str]:
        """Groups that the primary config chooses from, and how: one, a list, or optional."""
        file = next((f / f"{self.name}.yaml" for f in self.places if (f / f"{self.name}.yaml").is_file()), None)
        entries = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("defaults", []) if file else []
        pairs = [pair for entry in entries if isinstance(entry, Mapping) for pair in entry.items()]
        return {
            str(key).split()[-1]: "optional" if str(key).startswith("optional") or value is None
            else "list" if isinstance(value, list) else "one"
            for key, value in pairs if not str(key).startswith("override")
        }  # fmt: skip

    def _check_choices(self, override: Any) -> None:
        group: str = override.key_or_group
        if group not in self.groups or override.is_delete():
            return
        known = stems(self.places, group)
        for value in _values(override):
            words = value.split(BETWEEN) if value and group == "method" and value not in known else [value]
            if len(set(words)) < len(words):
                raise ValueError(f"{group} - must name each method once; got {value!r}; leave the repeated one out")
            for word in words:
                if word is not None and word not in known and not word.startswith("${"):
                    raise ValueError(
                        f"{group} - must be one of {listed(known, group.split('/')[0] + 's')}; got {word!r}; "
                        f"{hint(word, known)}"
                    )

    def check_composed(self, cfg: DictConfig) -> None:
        """Refuse what a ``+`` or a yaml added to a composed config that nothing reads.

        Raises:
            ValueError: one line with the choices.
        """
        for key in (str(k) for k in cfg if k != "hydra"):
            if key not in self.keys:
                raise ValueError(
                    f"{key} - must be a setting of the run ({', '.join(self.keys)}); a config sets it; "
                    f"{hint(key, self.keys)}"
                )
        for override in self.parsed:
            key = override.key_or_group
            if override.is_add() or override.is_force_add():
                self._check_added(cfg, key)
        self._check_plain_groups(cfg)

    def _check_added(self, cfg: DictConfig, key: str) -> None:
        """An added key must be a field of what its node builds; keys below a field are the field's own affair."""
        parts = key.split(".")
        if key in self.groups or len(parts) < 2 or parts[0] in ("hydra", "also"):
            return
        for depth in range(len(parts) - 1, 0, -1):
            node = OmegaConf.select(cfg, ".".join(parts[:depth]))
            if isinstance(node, DictConfig) and "_target_" in node:
                fields, field = _fields(str(node["_target_"])), parts[depth]
                if fields is not None and field not in fields:
                    where, known = ".".join(parts[:depth]), ", ".join(fields) or "it has none"
                    raise ValueError(
                        f"{where}.{field} - must be a setting of {where} ({known}); nothing would read it; "
                        f"{hint(field, fields)}"
                    )
                return

    def _check_plain_groups(self, cfg: DictConfig) -> None:
        """Keys of groups that build nothing (``model``) must stand in a yaml of the group."""
        for group in self.keys:
            node = cfg.get(group)
            if not isinstance(node, DictConfig) or "_target_" in node or group in FREE_GROUPS or group == "hydra":
                continue
            known = sorted(set(_written(self.places, group)))
            for key in (str(k) for k in node):
                if known and key not in known:
                    raise ValueError(
                        f"{group}.{key} - must be a setting of {group} ({', '.join(known)}); nothing would read it; "
                        f"{hint(key, known)}"
                    )

    def unknown_setting(self, key: str, cfg: DictConfig) -> str:
        """The line for ``method.lam=3``: the settings that the node does have.

        Args:
            key: the dotted key that Hydra could not override.
            cfg: the config composed without it.
        """
        parts = key.split(".")
        for depth in range(len(parts) - 1, -1, -1):
            node: Any = OmegaConf.select(cfg, ".".join(parts[:depth])) if depth else cfg
            if node is None and parts[:depth] == ["kept"]:
                return f"{key} - must be a setting of a source of prompts; none is chosen; write prompts@kept=NAME too"
            if isinstance(node, DictConfig):
                known = [str(k) for k in node if not str(k).startswith("_")]
                settings = ", ".join(known) or "it has none"
                where = ".".join(parts[:depth]) or "the run"
                said = [o.input_line for o in self.parsed if o.key_or_group == where and not o.is_sweep_override()]
                choice = next(iter(said), where)
                word = parts[depth]
                return f"{key} - must be a setting of {choice} ({settings}); got {word!r}; {hint(word, known)}"
        return f"{key} - must be a setting of the run ({', '.join(self.keys)}); got {key!r}; see erasebench --help"

    def cells(self) -> tuple[list[list[str]], list[str]]:
        """Every cell's overrides in the order of Hydra's own sweeper, and the keys that differ between cells.

        Raises:
            ValueError: a sweep that cannot be listed, such as an interval.
        """
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
        from hydra.errors import HydraException

        for override in self.parsed:
            override.config_loader = _Globs(self.places)
        try:
            batches = BasicSweeper.split_arguments(self.parsed, None)
        except HydraException as error:
            raise ValueError(str(error)) from None
        swept = [o.key_or_group for o in self.parsed if o.is_sweep_override()]
        return [list(cell) for batch in batches for cell in batch], swept


class _Globs:
    """What ``method=glob(*)`` chooses from, in the form Hydra's overrides ask for it."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders

    def get_group_options(self, group: str, **_: Any) -> list[str]:
        return stems(self.folders, group)


def _key(override: Any) -> str:
    return f"{override.key_or_group}@{override.package}" if override.package else str(override.key_or_group)


def _values(override: Any) -> Iterator[str | None]:
    """The choices that an override of a group names; none for a glob or a dictionary."""
    from hydra.core.override_parser.types import ChoiceSweep, Glob, RangeSweep

    value = override.value()
    if isinstance(value, ChoiceSweep):
        value = value.list
    if isinstance(value, Glob | RangeSweep | Mapping):
        return
    for one in value if isinstance(value, list) else [value]:
        for inner in one if isinstance(one, list) else [one]:
            yield None if inner is None else str(getattr(inner, "text", inner))


def _fields(target: str) -> list[str] | None:
    """Names of the parameters of a ``_target_``; None if it takes any, or cannot be imported."""
    from hydra.utils import get_object

    try:
        parameters = inspect.signature(get_object(target)).parameters.values()
    except (ImportError, ValueError, TypeError):
        return None
    return (
        None if any(p.kind is p.VAR_KEYWORD for p in parameters) else [p.name for p in parameters if p.name != "self"]
    )


def _written(folders: Sequence[Path], group: str) -> Iterator[str]:
    """Keys that the yamls of a group give it, with or without ``@package _global_``."""
    for file in (path for folder in folders for path in (folder / group).glob("*.yaml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        inner = content.get(group) if "@package _global_" in file.read_text(encoding="utf-8") else content
        yield from (str(key) for key in (inner or {}) if key != "defaults")
