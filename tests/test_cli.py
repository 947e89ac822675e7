"""The command line: nothing typed is ignored, whatever goes wrong is one line, exit codes are right everywhere."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from erasebench import conf_folder
from erasebench.command import errors, launch, sweep
from erasebench.command.typed import Typed

REPO = Path(__file__).parents[1]
FEW = [
    "prompts.n={target:2,paraphrase:0,neighbour:0,unrelated:0,coco:0}", "model.steps=2", "evaluator=[classifier]",
]  # fmt: skip


def refused(capsys, *arguments: str) -> str:
    """The one line with which the command refuses what was typed."""
    assert launch.launch(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    "override, said",
    [
        ("atack=ringabell", "did you mean attack?"),
        ("+atack=ringabell", "did you mean attack?"),
        ("+modle.steps=3", "did you mean model.steps?"),
        ("method=unce", "did you mean uce?"),
        ("recipe=rece_emojy", "did you mean rece_emoji?"),
        ("budget=ringabel_emoji", "did you mean ringabell_emoji?"),
        ("experiment=rece_nudety_sd14", "did you mean rece_nudity_sd14?"),
        ("evaluator=[clasifier,fid]", "did you mean classifier?"),
        ("attack/vectr=csv", "did you mean attack/vector?"),
        ("+experiment=rece_nudity_sd14", "write experiment=CHOICE"),
        ("attack=[none,ringabell]", "must be one choice"),
        ("~method", "a run needs it"),
        ("ringabell", "did you mean attack=ringabell?"),
        ("concept=(cat", "Hydra can read"),
        ("seed=1 +seed=2", "got seed=1 and +seed=2"),
    ],
)
def test_what_names_nothing_is_refused_before_anything_is_composed(override, said):
    with pytest.raises(ValueError) as error:
        Typed(tuple(override.split(" "))).check()
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override", ["method=uce", "method=none,uce", "method=glob(e*)", "experiment=null", "~evaluator.nudenet", "~recipe"]
)
def test_what_hydra_understands_is_let_through(override):
    Typed((override,)).check()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["method.lambb=3"], "did you mean lamb?"),
        (["+method.lambb=3"], "did you mean lamb?"),
        (["++attack.seeds=1", "attack=reseed"], "must be a setting of attack"),
        (["+model.sampler=pndm"], "must be a setting of model"),
        (["--cfg", "job", "+model.stepz=3"], "did you mean steps?"),
        (["method=uce,rece"], "add -m"),
        (["--multi-run", "method=uce"], "did you mean --multirun?"),
        (["--config-dir=/no/where", "method=uce"], "/no/where"),
    ],
)
def test_what_nothing_would_read_is_refused_with_the_settings_there_are(capsys, arguments, said):
    assert said in refused(capsys, *arguments)


def test_options_may_stand_anywhere(capsys):
    assert launch.launch(["method=uce", "--cfg", "job", "model.steps=3"]) == 0
    assert "steps: 3" in capsys.readouterr().out


def test_configs_from_outside_compose_and_their_groups_may_be_added(tmp_path, capsys):
    (tmp_path / "method").mkdir()
    (tmp_path / "shelf").mkdir()
    own = (conf_folder() / "method" / "none.yaml").read_text(encoding="utf-8")
    (tmp_path / "method" / "mine.yaml").write_text(own, encoding="utf-8")
    (tmp_path / "shelf" / "a.yaml").write_text("width: 3\n", encoding="utf-8")
    mine = [f"--config-dir={tmp_path}", "method=mine", "--cfg=job"]
    assert launch.launch([*mine, "+shelf=a"]) == 0
    assert "width: 3" in capsys.readouterr().out
    assert "did you mean mine?" in refused(capsys, mine[0], "method=mime")
    (tmp_path / "experiment").mkdir()
    yaml = "# @package _global_\nmodel: {stepss: 3}\n"
    (tmp_path / "experiment" / "typo.yaml").write_text(yaml, encoding="utf-8")
    assert "did you mean steps?" in refused(capsys, mine[0], "experiment=typo")


class OutOfMemoryError(RuntimeError):  # as torch's is called
    pass


@pytest.mark.parametrize(
    "error, said",
    [
        (ValueError("steps - must be 1;\n  got 0"), "steps - must be 1; got 0"),
        (KeyError("no such image"), "KeyError: no such image"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), "a.csv - no such file or directory"),
        (OverflowError("too large"), "OverflowError: too large"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "lower model.batch_size"),
        (RuntimeError("Torch not compiled with CUDA enabled"), "model.device - must be a device"),
        (RuntimeError("Expected one of cpu, cuda device type at start of device string: tpu"), "model.device"),
        (RuntimeError("linalg.solve: The solver failed because the input matrix is singular."), "regularisation"),
        (RuntimeError("Load model from d.onnx failed: Protobuf parsing failed"), "fetch it again"),
        (ModuleNotFoundError("No module named 'nudenet'", name="nudenet"), "erasebench[nudenet]"),
        (TypeError("UCE.__init__() got an unexpected keyword argument 'lam'"), "UCE - must be given the settings"),
        (ConnectionError("https://huggingface.co/a: no route"), "the network"),
    ],
)  # fmt: skip
def test_what_a_user_can_cause_is_one_line(error, said):
    line = errors.explain(error)
    assert line is not None and said in line and "\n" not in line


def test_a_fault_of_ours_keeps_its_traceback_and_ends_with_one_line(capsys):
    assert errors.explain(AttributeError("'NoneType' object has no attribute 'strip'")) is None
    errors.report(IndexError("list index out of range"), "cell 2 of 3 (seed=1)")
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: cell 2 of 3 (seed=1): IndexError: list index out of range; ") and "report" in last


def test_a_sweep_knows_its_cells_whichever_process_ran_them(tmp_path):
    typed = Typed(("method=uce,rece", "concept=cat", "seed=range(2)"))
    cells, swept = typed.cells()
    names = sweep.labels(cells, swept)
    assert names == ["method=uce seed=0", "method=uce seed=1", "method=rece seed=0", "method=rece seed=1"]
    begun = sweep.Sweep.begin(tmp_path, names)
    begun.add(sweep.Outcome(2, names[2], "error", "no"))
    assert [o.status for o in sweep.Sweep(begun.folder).outcomes()] == ["lost", "lost", "error", "lost"]
    said = sweep.closing(begun.outcomes(), 0.0)
    assert "4 cell(s) failed" in said and "failed: cell 3 (method=rece seed=0): no" in said
    begun.end()
    assert list((tmp_path / "cache").iterdir()) == []


def started(results: Path, *overrides: str, **options) -> subprocess.Popen:
    few = [o for o in FEW if o.split("=")[0] not in {given.split("=")[0] for given in overrides}]
    arguments = [sys.executable, "-m", "erasebench", f"results={results}", *few, *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    return subprocess.Popen(arguments, cwd=REPO, env=environment, text=True, stdout=-1, stderr=-1, **options)


@pytest.mark.slow
def test_a_sweep_says_where_it_is_what_failed_and_exits_so(tmp_path):
    running = started(tmp_path, "-m", "method=checkpoint", "method.path=no1.safetensors,no2.safetensors")
    out, err = running.communicate(timeout=300)
    assert running.returncode == 2 and out == ""  # nothing was begun
    assert [line.count("must be there; it is not") for line in err.splitlines()] == [1, 1]
    running = started(tmp_path, "-m", "concept=cat,church", "method=none")
    out, err = running.communicate(timeout=300)
    assert running.returncode == 2, err
    assert "cell 1 of 2 (concept=cat): " in out and "1 of 2 cells" in out
    assert "error: cell 2 of 2 (concept=church): " in err and "failed: cell 2 (concept=church): " in out
    assert "Traceback" not in err and "cell 1 of 2: draw: " in err


@pytest.mark.slow
def test_stopped_by_a_signal_it_says_that_it_goes_on(tmp_path):
    running = started(tmp_path, "method=none", "prompts.n={target:50,paraphrase:50,neighbour:0,unrelated:0,coco:0}")
    deadline = time.time() + 120
    while running.poll() is None and time.time() < deadline and not list(tmp_path.glob("cache/images/*/*")):
        time.sleep(0.05)
    running.terminate()
    _, err = running.communicate(timeout=60)
    assert running.returncode == 143 and "Traceback" not in err
    assert err.splitlines()[-1] == errors.STOPPED
