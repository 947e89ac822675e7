"""Jobs that need the same work: one does it, the others wait or take other work; nobody waits for the dead."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

import erasebench
from erasebench import store
from erasebench.store import claims
from erasebench.store.claims import Claim, Watch, claimed, holder_of, share

FORK = multiprocessing.get_context("fork")


def make_slowly(folder: Path, log: Path) -> None:
    with log.open("a") as file:
        file.write("made\n")
    time.sleep(1.5)  # the others started with this one: by now they wait
    (folder / "result.txt").write_text("the same")


def step_of(root: Path, log: Path, start) -> None:
    start.wait(60)
    store.step(root, "erase", "k", lambda folder: make_slowly(folder, log))


def in_processes(work, *arguments, n: int = 4) -> None:
    jobs = [FORK.Process(target=work, args=arguments) for _ in range(n)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0] * n


def test_of_four_processes_one_makes_the_step_and_the_others_wait(tmp_path, capfd):
    in_processes(step_of, tmp_path, tmp_path / "log", FORK.Barrier(4))
    assert (tmp_path / "log").read_text() == "made\n"
    assert capfd.readouterr().err.count("waiting for process") == 3
    assert [p.name for p in (tmp_path / "cache" / "erase").iterdir()] == ["k"]  # no claim, no leftover


def hold(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert Watch().take(path) is not None
    time.sleep(600)


def test_the_claim_of_a_killed_process_is_taken_over_at_once(tmp_path):
    path = tmp_path / ".k.claim"
    job = FORK.Process(target=hold, args=(path,))
    job.start()
    while not holder_of(path):
        time.sleep(0.01)
    assert Watch().take(path) is None
    os.kill(job.pid, signal.SIGKILL)
    job.join()
    claim = Watch().take(path)
    assert claim is not None and (holder_of(path) or {})["pid"] == os.getpid()
    claim.release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_with_the_number_of_a_dead_one_is_not_its_heir(tmp_path):
    path = tmp_path / ".k.claim"
    path.write_text(json.dumps({"machine": claims.machine(), "pid": os.getpid(), "started": "1", "token": "t"}))
    assert not Watch().held(path)
    path.write_text(json.dumps({"machine": claims.machine(), "pid": os.getpid(), "started": claims.born(os.getpid())}))
    assert Watch().held(path)


@pytest.mark.parametrize("content", ['{"machine": "elsewhere 1 2", "pid": 1, "token": "t"}', "", "[]", "\x00\xff"])
def test_a_claim_from_elsewhere_counts_as_long_as_it_is_touched(tmp_path, monkeypatch, content):
    monkeypatch.setattr(claims, "PATIENCE", 0.4)
    path, watch = tmp_path / ".k.claim", Watch()
    path.write_text(content)
    for beat in range(4):  # its clock may be wrong by years
        os.utime(path, (1e9 + beat, 1e9 + beat))
        assert watch.take(path) is None
        time.sleep(0.2)
    time.sleep(0.3)
    assert watch.take(path) is not None


def test_the_holder_touches_its_claim_and_what_it_works_on(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.05)
    folder, path = tmp_path / "work", tmp_path / ".k.claim"
    folder.mkdir()
    claim = Claim.make(path, (folder,), {})
    for place in (folder, path):
        os.utime(place, (0, 0))
    time.sleep(0.3)
    assert min(place.stat().st_mtime for place in (folder, path)) > 1e9
    claim.release()
    assert not path.exists()


def test_a_claim_that_was_taken_over_is_not_released_by_its_first_holder(tmp_path):
    path = tmp_path / ".k.claim"
    first = Claim.make(path, (), {})
    path.unlink()
    second = Claim.make(path, (), {})
    first.release()
    assert path.exists()
    second.release()


def test_a_failed_holder_leaves_the_work_to_the_next(tmp_path):
    with pytest.raises(ValueError), claimed(tmp_path / ".k.claim", "erase"):
        raise ValueError
    with claimed(tmp_path / ".k.claim", "erase") as mine:
        assert mine
    with claimed(tmp_path / ".k.claim", "erase", done=lambda: True) as mine:
        assert not mine


def draw_some(folder: Path, log: Path) -> None:
    def missing() -> list[str]:
        return [str(i) for i in range(60) if not (folder / str(i)).exists()]

    watch = Watch()
    while missing():
        with share(folder, missing, 4, watch) as pieces:
            time.sleep(0.01 if pieces else 0.05)
            for piece in pieces:
                with log.open("a") as file:
                    file.write(f"{piece}\n")
                (folder / piece).touch()


def test_pieces_are_done_once_and_by_several(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    in_processes(draw_some, folder, tmp_path / "log")
    done = (tmp_path / "log").read_text().split()
    assert sorted(done, key=int) == [str(i) for i in range(60)]
    assert not list(folder.glob(".*"))


def cell(method: str, folder: Path) -> None:
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    erasebench.run(
        f"method={method}", "attack=ringabell", "attack.generations=2", "attack.population=8", "evaluator=[asr]",
        "prompts.n={target:8,paraphrase:0,neighbour:0,unrelated:0,coco:0}", "model.steps=2", "model.batch_size=4",
        f"results={folder}",
    )  # fmt: skip


@pytest.mark.slow
def test_four_cells_share_a_search_and_the_images_of_the_original(tmp_path):
    jobs = [FORK.Process(target=cell, args=(m, tmp_path)) for m in ("none", "uce", "rece", "negative_prompt")]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(300)
    assert [job.exitcode for job in jobs] == [0] * 4
    steps = [json.loads(path.read_text())["steps"] for path in tmp_path.glob("runs/**/run.json")]
    prompts = 8 + 8
    assert sum(not step["attack"]["cached"] for step in steps) == 1
    assert sum(step["draw"]["images"] for step in steps) == (1 + 3) * prompts  # the original, and three erased models
    assert all(step["draw"]["images"] + step["draw"]["reused"] in (prompts, 2 * prompts) for step in steps)
    assert not list((tmp_path / "cache").rglob(".*"))
