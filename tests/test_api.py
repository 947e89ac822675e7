"""Runs and tables from Python: named as on the command line, and nothing of Hydra left behind."""

import subprocess
import sys

import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import erasebench
from erasebench.command.composing import session

FEW = {"target": 2, "paraphrase": 0, "neighbour": 2, "unrelated": 0, "coco": 0}
SMALL = {"evaluator": ["classifier"], "prompts.n": FEW, "model.steps": 2}


@pytest.mark.slow
def test_a_run_is_named_and_stored_as_on_the_command_line(tmp_path):
    job = HydraConfig.instance().cfg
    first = erasebench.run(method="none", concept="sun", results=tmp_path, **SMALL)
    assert first.folder == tmp_path / "runs/emoji/sun/none/none@steps-2/seed0" and not first.cached
    assert not GlobalHydra.instance().is_initialized() and HydraConfig.instance().cfg is job
    with session():  # a notebook or program that uses Hydra itself
        before = GlobalHydra.instance().hydra
        again = erasebench.run("method=none", "concept=sun", results=str(tmp_path), **SMALL)
        assert GlobalHydra.instance().hydra is before and again.cached
    scores, summary = erasebench.results(tmp_path)
    pd.testing.assert_frame_equal(scores, first.scores)
    assert set(summary.group) == {"target", "neighbour"} and set(summary.method) == {"none"}


@pytest.mark.parametrize(
    "settings, said",
    [({"method": "unce"}, "did you mean uce"), ({"method.lambb": 1}, "mean lamb"), ({"conzept": "cat"}, "concept")],
)
def test_what_is_misspelt_is_refused_as_on_the_command_line(settings, said):
    with pytest.raises(ValueError, match=said):
        erasebench.run(**settings)


def test_importing_the_package_imports_little():
    code = "import sys, erasebench; print(sorted({'torch', 'pandas', 'hydra', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
