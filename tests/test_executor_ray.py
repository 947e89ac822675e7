"""The same tables through Ray: one worker, two, one killed at work, the command itself killed."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from erasebench import paper, steps
from erasebench.command.launch import launch
from erasebench.executors import board
from erasebench.store.claims import runs
from tests.small import SMALL, small_run
from tests.test_protocols import sets

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.slow

CELL = (
    "method=uce", "attack=ringabell", "attack.generations=2", "attack.population=4", "attack.sources=2",
    "prompts.n={target:16,paraphrase:0,neighbour:8,unrelated:24,coco:0}",
)  # fmt: skip
MINE = """
import os
from dataclasses import dataclass
from erasebench.protocols import Method

@dataclass(frozen=True, kw_only=True)
class Breaks(Method):
    def erase(self, pipe, concept):
        raise ValueError("breaks.lamb must be larger; got 0")

@dataclass(frozen=True, kw_only=True)
class Dies(Method):
    def erase(self, pipe, concept):
        os._exit(1)
"""


def arguments(*overrides: str) -> list[str]:
    names = {o.partition("=")[0] for o in overrides}
    return [*(o for o in SMALL if o.partition("=")[0] not in names), *overrides]


def tables(root: Path) -> dict[str, bytes]:
    kinds = ("*.parquet", "*.csv", "*.png")
    return {str(p.relative_to(root)): p.read_bytes() for kind in kinds for p in sorted((root / "runs").rglob(kind))}


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    """Somebody's own methods, beside a config folder that chooses them."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine_of_executor.py").write_text(textwrap.dedent(MINE))
    (folder / "method").mkdir()
    for name in ("Breaks", "Dies"):
        (folder / "method" / f"{name.lower()}.yaml").write_text(f"_target_: mine_of_executor.{name}\n")
    return folder


@pytest.fixture(scope="module")
def here(mine):
    """Ray on this machine, for all tests of this file; workers see the paths that were there when it began."""
    sys.path.insert(0, str(mine))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options = {"include_dashboard": False, "object_store_memory": 100 * 2**20, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=2, log_to_driver=False, configure_logging=False, **options)
    yield
    ray.shutdown()
    sys.path.remove(str(mine))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, bytes]:
    """What one process writes."""
    root = tmp_path_factory.mktemp("alone")
    assert launch(arguments(*CELL, f"results={root}")) == 0
    return tables(root)


def states(root: Path, until: float = 120.0):
    """What the board says, again and again."""
    end = time.monotonic() + until
    while time.monotonic() < end:
        yield from (state for _, state in board.read(root))
        time.sleep(0.05)


def kill_one_at_work(root: Path, killed: list[int]) -> None:
    for state in states(root):
        busy = [w["pid"] for w in state["workers"] if w["doing"].startswith("draw")]
        if busy and state["images"][0]:
            os.kill(busy[0], signal.SIGKILL)
            killed.append(busy[0])
            return


def test_one_worker_writes_the_tables_of_one_process(tmp_path, here, alone, monkeypatch):
    import erasebench

    result = erasebench.run(*arguments(*CELL), executor="ray", results=str(tmp_path), **{"executor.workers": 1})
    assert not result.cached and tables(tmp_path) == alone
    again = erasebench.run(*arguments(*CELL), results=str(tmp_path))
    assert again.cached and again.record["steps"]["draw"]["images"] == 0  # all was drawn by pieces
    assert not list(board.folder(tmp_path).iterdir()) and "executor" not in again.record["identity"]


def test_of_two_workers_one_is_killed_and_nothing_is_lost(tmp_path, here, alone, monkeypatch, capsys):
    monkeypatch.setattr(board, "EVERY", 0.05)
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_at_work, args=(tmp_path, killed))
    killer.start()
    assert launch(arguments(*CELL, "executor=ray", "executor.workers=2", f"results={tmp_path}")) == 0
    killer.join()
    assert killed and tables(tmp_path) == alone
    assert ", 1 lost" in capsys.readouterr().err


def test_a_cell_that_fails_is_named_and_the_others_go_on(tmp_path, here, mine, capsys):
    given = ["-m", f"--config-dir={mine}", "method=uce,breaks,dies", "executor=ray", "executor.workers=2"]
    assert launch(arguments(*given, "executor.retries=1", f"results={tmp_path}")) == 2
    out, err = capsys.readouterr()
    assert "error: cell 2 of 3 (method=breaks): breaks.lamb must be larger; got 0" in err
    assert "a piece of work (erase) must leave its worker alive; 2 were lost at it" in err
    assert "1 of 3 cells" in out and "cell 1 of 3 (method=uce): target" in out and "Traceback" not in err
    small_run(tmp_path / "one", "method=uce")
    assert tables(tmp_path) == {**tables(tmp_path), **tables(tmp_path / "one")}


def test_a_killed_command_leaves_no_worker_and_goes_on_from_the_store(tmp_path, alone):
    command = [sys.executable, "-m", "erasebench", *arguments(*CELL, "executor=ray", "executor.workers=2")]
    first = subprocess.Popen([*command, f"results={tmp_path}"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for state in states(tmp_path):
        if state["images"][0] >= 16:
            break
    first.kill()
    first.wait()
    end = time.monotonic() + 60
    while any(runs(worker["pid"]) for worker in state["workers"]) and time.monotonic() < end:
        time.sleep(0.2)
    assert state["workers"] and not any(runs(worker["pid"]) for worker in state["workers"])
    assert not tables(tmp_path)
    ((_, left),) = board.read(tmp_path)
    assert board.gone(left)
    again = subprocess.run([*command, f"results={tmp_path}"], capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stderr
    assert tables(tmp_path) == alone
    assert not list(board.folder(tmp_path).iterdir())


def real(folder: Path) -> dict[str, Path]:
    """The published prompt files where they are here, with a row about a minor; else three harmless rows each."""
    data = Path(__file__).parents[2] / "shared" / "data" / "rece"
    if not (data / "nudity.csv").exists():
        return sets(folder)
    lines = (data / "nudity.csv").read_text(encoding="utf-8").splitlines()
    row = dict.fromkeys(next(csv.reader(lines[:1])), "0") | {"prompt": "a child on a bicycle"}
    (folder / "target.csv").write_text("\n".join([lines[0], ",".join(row.values()), *lines[1:]]), encoding="utf-8")
    return {"target": folder / "target.csv", "coco": data / "coco_30k.csv"}


def test_a_published_protocol_with_its_prompts_on_a_stable_diffusion_pipeline(
    tmp_path, here, tiny_pipe, monkeypatch, capsys
):
    """RECE's nudity experiment on tiny random weights of the architecture, and the paper's table of it in LaTeX.

    One process, stopped at work, goes on; two workers, of which one is killed, write the same tables.
    """
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # the judges' weights are asked for by no evaluator here
    monkeypatch.setattr(board, "EVERY", 0.05)
    tiny_pipe.save_pretrained(tmp_path / "pipe")
    files = real(tmp_path)
    given = [
        "experiment=rece_nudity", f"model.path={tmp_path / 'pipe'}", f"prompts.path={files['target']}", "model.steps=2",
        "prompts.sha256=null", f"kept.path={files['coco']}", "kept.sha256=null", "model.device=cpu", "clip=emoji",
        "features=emoji", "model.batch_size=1", "prompts.limit=4", "kept.limit=4",
    ]  # fmt: skip
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_at_work, args=(tmp_path / "many", killed))
    killer.start()
    assert launch([*given, "executor=ray", "executor.workers=2", f"results={tmp_path / 'many'}"]) == 0
    killer.join()
    drawn, plain = [], steps.diffusion.generate

    def stopped(*args, **options):
        for one in plain(*args, **options):
            drawn.append(one)
            yield one
            if len(drawn) == 5:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps.diffusion, "generate", stopped)
        assert launch([*given, f"results={tmp_path / 'one'}"]) != 0
    assert not tables(tmp_path / "one")
    capsys.readouterr()
    assert launch([*given, f"results={tmp_path / 'one'}"]) == 0
    if "shared" in files["coco"].parts:
        assert "of 124 prompts that mention minors" in "".join(capsys.readouterr())
    assert tables(tmp_path / "many") == tables(tmp_path / "one") != {}
    assert paper.main(["table=nudity", "format=latex", f"results={tmp_path / 'many'}"]) == 0
    printed = capsys.readouterr().out
    assert r"\begin{tabular}" in printed and all(word in printed for word in ("Armpits", "Breasts", "rece", "Total"))


def stub(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_the_script_makes_a_cluster_of_an_allocation_and_leaves_nothing(tmp_path):
    stubs, port = tmp_path / "bin", free_port()
    stubs.mkdir()
    stub(stubs, "scontrol", "echo here")
    stub(stubs, "srun", 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"')
    allocation = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here", "SLURM_CPUS_PER_TASK": "2"}
    own = {"ERASEBENCH_PYTHON": sys.executable, "ERASEBENCH_PORT": str(port), "PATH": f"{stubs}:{os.environ['PATH']}"}
    script = str(Path(board.__file__).with_name("slurm.sh"))
    given = arguments("method=none", "executor.workers=1", f"results={tmp_path / 'many'}")
    done = subprocess.run(
        ["bash", script, *given], env={**os.environ, **allocation, **own}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    small_run(tmp_path / "one", "method=none")
    assert tables(tmp_path / "many") == tables(tmp_path / "one") != {}
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if f":{port}" in reading(p) or f"port={port}" in reading(p)]
    assert not left
    alone = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    refused = subprocess.run(["bash", script], env={**alone, **own}, capture_output=True, text=True)
    assert refused.returncode == 1 and "must run inside a Slurm allocation" in refused.stderr


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def reading(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
