"""What the harness knows of an attack stands on its class, for every attack that a yaml reaches."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import get_args

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from erasebench import conf_folder
from erasebench.protocols import Attack
from erasebench.types import Access, Strength

ATTACKS = {path.stem: OmegaConf.load(path) for path in sorted((conf_folder() / "attack").glob("*.yaml"))}


def kind(name: str) -> type:
    """The class of a yaml, its own or that of the yaml it builds on."""
    node = ATTACKS[name]
    if "_target_" in node:
        return get_class(node._target_)
    return kind(next(default for default in node.defaults if default in ATTACKS))


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_declares_what_tables_and_flags_need(name):
    attack = kind(name)
    assert is_dataclass(attack) and Attack in attack.__mro__
    assert attack.access in get_args(Access)
    told = isinstance(attack.strength, property)  # by what it hands over, as replay does
    assert told or attack.strength in get_args(Strength)
    assert isinstance(attack.control, bool) and isinstance(attack.spends, tuple)
    declared = {"access", "strength", "control", "spends"}
    names = {field.name for field in fields(attack)}
    assert not declared & names  # no hyper-parameter: a yaml cannot say otherwise
    assert set(attack.spends) <= names


def test_the_attacks_by_luck_alone_are_the_controls():
    assert {name for name in ATTACKS if kind(name).control} == {"random_prefix", "reseed", "best_of_n"}


def test_an_attack_that_searches_spends_something_and_one_that_does_not_spends_nothing():
    still = {name for name in ATTACKS if not kind(name).spends}
    assert still >= {"none", "csv", "replay", "ringabell_soft"}
    assert not still & {
        "ringabell",
        "ringabell_k38",
        "unlearndiffatk",
        "p4d",
        "p4d_n",
        "p4d_k",
        "reseed",
        "inverse_edit",
    }
