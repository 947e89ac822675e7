"""Results are data: nothing that a results folder names is imported or called unless a config in use names it."""

import json
import sys

import pytest
from safetensors.torch import save_file

from erasebench.diffusion import erasures
from erasebench.rebuilding import check, rebuild
from erasebench.types import Concept
from methods.negative_prompt import NegativeGuide

CALLS = {
    "a function": {"_target_": "os.system", "command": "touch {marker}"},
    "a reader of pickles": {"_target_": "pandas.read_pickle", "filepath_or_buffer": "{marker}"},
    "numpy's": {"_target_": "numpy.load", "file": "{marker}", "allow_pickle": True},
    "torch's": {"_target_": "torch.load", "f": "{marker}", "weights_only": False},
    "an expression": {"_target_": "sympy.sympify", "a": "__import__('os').system('touch x')"},
    "a function of ours": {"_target_": "erasebench.store.files.replacing", "path": "{marker}"},
    "what a module of ours imports": {"_target_": "methods.sld.torch.load", "f": "{marker}"},
    "a class of another package": {"_target_": "subprocess.Popen", "args": ["touch", "{marker}"]},
    "a nested one": {"_target_": "erasebench.types.Concept", "name": {"_target_": "os.system", "command": "touch x"}},
    "one in a list": {"_target_": "erasebench.types.Concept", "phrases": [{"_target_": "os.getcwd"}]},
    "a partial": {"_target_": "erasebench.types.Concept", "_partial_": True},
    "an interpolation": {"_target_": "erasebench.types.Concept", "name": "${oc.env:HOME}"},
    "a module of its own": {"_target_": "evil_module_of_a_results_folder.Guide"},
}


def hostile(name, marker):
    return json.loads(json.dumps(CALLS[name]).replace("{marker}", str(marker)))


@pytest.mark.parametrize("name", CALLS)
def test_nothing_else_is_built(name, tmp_path, monkeypatch):
    (tmp_path / "evil_module_of_a_results_folder.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r"run\.json (names|must hold plain values)") as error:
        rebuild(hostile(name, tmp_path / "marker"), Concept, "run.json")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "marker").exists() and "evil_module_of_a_results_folder" not in set(sys.modules) - before


def test_a_guide_from_a_stored_erasure_is_one_of_a_method_s_own(tmp_path, tiny_pipe):
    save_file({}, tmp_path / "changed.safetensors")
    record = tmp_path / "erasure.json"
    for guide in ({"_target_": "os.system", "command": f"touch {tmp_path / 'marker'}"},
                  {"_target_": "erasebench.types.Concept", "name": "cat", "phrases": ["cat"]}):  # fmt: skip
        record.write_text(json.dumps({"guide": guide}), encoding="utf-8")
        with pytest.raises(ValueError, match=r"erasure\.json (names os\.system|must describe a Guide)"):
            erasures.load(tmp_path, tiny_pipe)
    assert not (tmp_path / "marker").exists()
    good = {"_target_": "methods.negative_prompt.NegativeGuide", "empty": "cat"}
    record.write_text(json.dumps({"guide": good}), encoding="utf-8")
    assert erasures.load(tmp_path, tiny_pipe).guide == NegativeGuide(empty="cat")


def test_a_folder_that_grows_takes_no_evaluator_that_only_it_names():
    with pytest.raises(ValueError, match=r"names os\.system"):
        check({"mine": {"_target_": "os.system", "command": "true"}}, "runs/run.json")
    features = {"_target_": "erasebench.judges.inception.Inception"}
    check({"fid": {"_target_": "evaluators.fid.FID", "features": features}}, "runs/run.json")
