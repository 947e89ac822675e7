"""Values that no field can have, made from the fields' own annotations: each a line with the key, before weights load.

What fits an annotation is decided here, independently of the code that refuses it.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from omegaconf import OmegaConf, open_dict

from erasebench import conf_folder, one_run, progress, settings, steps
from erasebench.cell import plan
from erasebench.command import composing, errors

VALUES = (
    "abc", "", "1.5", "true", "=1+1", None, True, False, 5, 1.5, math.nan, math.inf, -math.inf, [], ["a"], [None],
    [["a"]], [{}], {}, {"a": 1},
)  # fmt: skip
BASE = ("method=uce", "evaluator=[classifier]")
CHOICES = {
    "method": ("uce", "rece", "esd_x", "sdd", "eap_object", "sld_max", "negative_prompt", "oracle"),
    "attack": ("ringabell", "ringabell_soft", "unlearndiffatk", "p4d", "p4d_k", "p4d_n", "inverse_edit",
               "random_prefix",
               "reseed", "best_of_n"),
    "evaluator": ("[classifier]", "[asr]", "[clip_score]", "[fid]", "[spillover]", "[nudenet]"),
    "judge": ("emoji", "nudenet"),
    "prompts": ("emoji",),
    "concept": ("cat",),
    "features": ("emoji",),
}  # fmt: skip
OWN = {  # settings that belong to no class: key -> values that cannot be
    "seed": ("abc", None, -1, 1.5, True, [1], math.nan), "model.steps": ("abc", None, 0, -1, 1.5, True, [20], 10**9),
    "model.batch_size": ("abc", None, 0, -1, 2.5, True, 3 * 10**8),
    "model.guidance_scale": ("abc", None, math.nan, [3]),
    "model.height": ("abc", 0, -8, 100, 1.5, True, [64], 10**6), "model.width": ("abc", 0, 100, {"a": 1}),
    "model.dtype": ("float8", None, 16, ["float32"]), "model.device": ("gpu:9", None, 5, []),
    "model.path": (None, "", 5, [], "no/such/folder"), "model.name": ("../x", "", None, "a b", "-x", "a" * 300, ["a"]),
    "model.blur_unsafe": ("no", None, 1, []), "name": ("../x", "a/b", "a b", ["a"], "=1+1", "-x"),
    "method": (None, "abc", 5, [], {}), "attack": (None, "abc", {}), "judge": (None, "abc", {}),
    "concept": (None, 5, {}),
    "prompts": (None, "abc", {}), "evaluator": (None, "abc", {}, []), "evaluator.classifier": (None, 5, "abc", {}),
    "prompts.n": ("abc", None, -1, 1.5, True, [1], {"targets": 5}, {"target": -1}, {"target": 3 * 10**8}),
    "also": ("abc", 5, [5], ["no_such"], {"a": 1}), "together": ("abc", None, 5), "results": (None, "", [], True),
    "kept": ("abc", 5, []),
}  # fmt: skip


class Loaded(Exception):
    """A weight would have been loaded."""


def fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        return any(value is None if one is NoneType else fits(value, one) for one in args)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in args)
    if origin is int or origin is float:
        right = (int,) if origin is int else (int, float)
        return type(value) in right and math.isfinite(value)
    if origin is bool:
        return type(value) is bool
    if origin is str:
        return type(value) in (str, int)  # digits are a text, too
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list):
            return False
        return all(fits(one, args[0]) for one in value) and (args[1:2] in ((), (...,)) or len(value) == len(args))
    if origin is Mapping:
        return isinstance(value, dict) and all(fits(one, args[1]) for one in value.values())
    return origin is Any  # settings of a class are no plain value


def nodes(node: Any, key: str):
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield key, node
        for name, value in node.items():
            yield from nodes(value, f"{key}.{name}")


def generated(config: dict, group: str, seen: set):
    """(key, value) for every field of a class not seen before, and every value that does not fit it."""
    from hydra.utils import get_object

    for key, node in nodes(config[group], group):
        for name, hint in settings.hints(get_object(node["_target_"])).items():
            if (node["_target_"], name) not in seen and name in node:
                seen.add((node["_target_"], name))
                wrong = [value for value in VALUES if not fits(value, hint)]
                turn = len(seen) % 5  # other values for other fields of a type
                yield from ((f"{key}.{name}", value) for value in wrong[turn::5])


def ran(cfg: Any, key: str, value: Any) -> None:
    """A run of the config with a value in it."""
    changed = cfg.copy()
    with open_dict(changed):
        OmegaConf.update(changed, key, value, merge=False, force_add=True)
    with composing.as_job(changed) as part:
        one_run.run(part)


def built(cell: Any, key: str, value: Any) -> None:
    """The parts of a planned run with a value in its config: a run's second half, and ten times as fast."""
    config = copy.deepcopy(cell.config)
    *above, last = key.split(".")
    functools.reduce(dict.__getitem__, above, config)[last] = value
    one_run.build_parts(replace(cell, config=config))
    raise Loaded


def refused(tried: Any, cfg: Any, key: str, value: Any) -> str:
    """The line a value is refused with, "" if it is not."""
    started = time.monotonic()
    try:
        tried(cfg, key, value)
    except Loaded:
        return ""
    except Exception as error:
        line = errors.explain(error)
        assert line is not None, f"{key}={value!r}: {error!r}"
        assert errors.code(error) == 2 and time.monotonic() - started < 10
        return line
    raise AssertionError(f"{key}={value!r} ran")


@pytest.fixture
def before_weights(monkeypatch):
    def loaded(cell):
        raise Loaded

    monkeypatch.setattr(steps, "load", loaded)
    monkeypatch.setattr(progress, "say", lambda text: None)


@pytest.mark.slow
def test_what_no_field_can_have_is_one_line_with_its_key(before_weights, tmp_path: Path):
    seen: set = set()
    accepted, unnamed, n = [], [], 0
    with composing.session((conf_folder(),)):
        for group, options in CHOICES.items():
            for option in options:
                cfg = composing.compose([*BASE, f"{group}={option}", f"results={tmp_path}"])
                plain: Any = OmegaConf.to_container(composing.without_hydra(cfg), resolve=True)
                with composing.as_job(cfg) as part:
                    cell = plan(part)
                for key, value in generated(plain, group, seen):
                    whole = n % 10 == 0
                    line, n = refused(ran if whole else built, cfg if whole else cell, key, value), n + 1
                    if not line:
                        accepted.append((key, value))
                    elif key.rpartition(".")[2] not in line or "\n" in line or len(line) > 400:
                        unnamed.append((key, value, line))
    assert not accepted and not unnamed
    assert n >= 500


@pytest.mark.slow
def test_settings_of_the_run_are_one_line_with_their_key(before_weights, tmp_path: Path):
    with composing.session((conf_folder(),)):
        cfg = composing.compose([*BASE, f"results={tmp_path}"])
        lines = {(key, repr(v)): refused(ran, cfg, key, v) for key, values in OWN.items() for v in values}
    assert not [case for case, line in lines.items() if not line]
    assert not [(case, line) for case, line in lines.items() if case[0] not in line or "\n" in line]
