"""Evaluators whose optional packages are not installed are left out with one line, unless they were asked for."""

from __future__ import annotations

import importlib.util
import logging

import pytest

from erasebench import cell
from erasebench.building import missing_packages, without_extras
from evaluators.nudenet import NudeNet

NODES = {
    "classifier": {"_target_": "evaluators.classifier.Classifier", "judge": {"_target_": "some.Judge"}},
    "nudenet": {"_target_": "evaluators.nudenet.NudeNet"},
    "fid": {"_target_": "evaluators.fid.FID", "features": {"_target_": "erasebench.judges.inception.Inception"}},
}


@pytest.fixture
def bare(monkeypatch):
    """An installation without extras."""
    whole = importlib.util.find_spec
    extras = ("nudenet", "torch_fidelity", "torchmetrics")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in extras else whole(name))


@pytest.fixture
def typed(monkeypatch):
    """What the user typed, as Hydra tells it."""

    class Told:
        overrides = type("Overrides", (), {"task": []})()

    monkeypatch.setattr("hydra.core.hydra_config.HydraConfig.initialized", staticmethod(lambda: True))
    monkeypatch.setattr("hydra.core.hydra_config.HydraConfig.get", staticmethod(lambda: Told))
    return Told.overrides.task


def test_what_lacks_a_package_is_found_at_any_depth(bare):
    assert missing_packages(NODES["fid"]) == ["torch_fidelity"]
    kept, lacking = without_extras(NODES)
    assert list(kept) == ["classifier"] and lacking["nudenet"] == ["nudenet"]


def test_with_everything_installed_nothing_is_left_out(monkeypatch):
    monkeypatch.setattr("erasebench.building.importlib.util.find_spec", importlib.util.find_spec)
    assert missing_packages({"_target_": "evaluators.asr.ASR"}) == []
    assert missing_packages({"_target_": "no.such.Thing"}) == missing_packages({"_target_": "json"}) == []
    assert NudeNet.needs == ("nudenet",)


def test_an_evaluator_nobody_asked_for_is_left_out_with_one_line(bare, typed, caplog):
    config = {"evaluator": dict(NODES)}
    with caplog.at_level(logging.WARNING):
        cell.leave_out_extras(config)
    assert list(config["evaluator"]) == ["classifier"]
    assert [r.message for r in caplog.records] == [
        "evaluator nudenet is left out: nudenet not installed",
        "evaluator fid is left out: torch_fidelity not installed",
    ]


@pytest.mark.parametrize(
    "override", ["evaluator=[nudenet]", "+evaluator/extra=nudenet", "evaluator.nudenet.weights=640m"]
)
def test_an_evaluator_somebody_asked_for_stays(bare, typed, override):
    typed.append(override)
    config = {"evaluator": dict(NODES)}
    cell.leave_out_extras(config)
    assert list(config["evaluator"]) == list(NODES)
