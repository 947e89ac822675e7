"""A run in pieces: the same tables whoever does which piece, shared pieces once, and words for whoever watches."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from erasebench import store
from erasebench.command import spread
from erasebench.command.composing import as_job, composed, session
from erasebench.command.launch import launch
from erasebench.command.status import main as status
from erasebench.command.typed import Typed
from erasebench.executors import board
from erasebench.executors.cluster import Ray, variables
from erasebench.executors.local import Local
from erasebench.executors.pieces import Ledger, Piece, stages
from erasebench.executors.warm import Warm, seen
from erasebench.one_run import build_parts, plan
from tests.small import SMALL, small_run

SEARCH = ("attack=ringabell", "attack.generations=2", "attack.population=4", "attack.sources=2")


def planned(results: Path, *overrides: str):
    typed = Typed((*SMALL, f"results={results}", *overrides))
    with session(), as_job(composed(typed, typed.overrides)) as cfg:
        return plan(cfg)


def tables(root: Path) -> dict[str, bytes]:
    """Every table and picture of a results folder."""
    kinds = ("*.parquet", "*.csv", "*.png")
    return {str(p.relative_to(root)): p.read_bytes() for kind in kinds for p in sorted((root / "runs").rglob(kind))}


def filled(cells, hands: int, backwards: bool) -> Ledger:
    """Do all pieces of some cells by so many processes' worth of workers in turn."""
    ledger, workers, done = Ledger(), [Warm() for _ in range(hands)], []
    for number, cell in enumerate(cells):
        ledger.open(number, stages(number, cell, build_parts(cell), range(number)))
    while ledger.busy:
        batch = []
        while piece := ledger.next():
            batch.append(piece)
        assert batch
        for i, piece in enumerate(reversed(batch) if backwards else batch):
            cell = cells[piece.cell]
            ledger.finish(piece, workers[i % hands].do(cell.key, cell, piece))
            done.append(piece)
    ledger.order = done
    return ledger


@pytest.mark.slow
def test_whoever_does_which_piece_the_tables_are_those_of_one_process(tmp_path):
    methods = ("method=uce", "method=none")
    for method in methods:
        small_run(tmp_path / "one", method, *SEARCH)
    root = tmp_path / "many"
    ledger = filled([planned(root, method, *SEARCH) for method in methods], hands=3, backwards=True)
    assert ledger.ended == {0: None, 1: None}
    assert tables(root) == tables(tmp_path / "one") and len(tables(root)) > 5
    kinds = [piece.kind for piece in ledger.order]
    assert kinds.count("attack") == 1 and kinds.count("erase") == 2  # the search is both cells'
    drawn = [d for piece in ledger.order for d in piece.digests]
    assert len(drawn) == 2 * len(set(drawn)) == ledger.images[0]  # by the original and by uce; none is the original
    assert kinds[-2:] == ["record", "record"] and [p.cell for p in ledger.order[-2:]] == [0, 1]


@pytest.mark.slow
def test_a_worker_with_other_code_or_files_makes_nothing(tmp_path):
    cell = planned(tmp_path, "method=none")
    piece = Piece("x", "erase", 0)
    with pytest.raises(ValueError, match="workers must have the code and files"):
        Warm().do("another key", cell, piece)
    assert not (tmp_path / "cache" / "erase").exists()


def fake(*names: list[str]):
    """A plan with stages of pieces of these names; what it was told is kept."""
    told = []

    def steps():
        for stage in names:
            told.append(
                (yield [Piece(name, name.split()[0], 0, digests=("d",) * name.startswith("draw")) for name in stage])
            )

    return steps(), told


def test_stages_wait_for_their_pieces_and_shared_ones_are_done_once():
    ledger, (first, told), (second, _) = Ledger(), fake(["erase 1", "draw 1"], [], ["score 1"]), fake(["draw 1"])
    ledger.open(0, first)
    ledger.open(1, second)
    one, two = ledger.next(), ledger.next()
    assert (one.id, two.id, ledger.next(), ledger.waiting) == ("erase 1", "draw 1", None, 0)
    ledger.finish(two, None)
    assert ledger.ended == {1: None} and ledger.images == [1, 1] and ledger.busy
    ledger.finish(one, {"erased": "k"})
    assert told[0] == {"erase": {"erased": "k"}, "draw": None} and ledger.next().id == "score 1"


def test_a_lost_piece_is_the_next_and_a_failed_one_ends_only_who_needs_it():
    ledger = Ledger()
    for number, names in enumerate((["draw 1", "draw 2"], ["draw 2", "draw 3"], ["draw 3"])):
        ledger.open(number, fake(names)[0])
    lost = ledger.next()
    ledger.lose(lost)
    assert ledger.next() is lost
    error = ValueError("broken")
    ledger.fail(lost, error)
    ledger.lose(lost)  # by another worker, too late
    assert ledger.ended == {0: error}
    rest = [ledger.next(), ledger.next()]
    assert [piece.id for piece in rest] == ["draw 2", "draw 3"] and ledger.next() is None
    for piece in rest:
        ledger.finish(piece, None)
    assert ledger.ended == {0: error, 1: None, 2: None} and not ledger.busy


def test_a_worker_is_given_what_it_has_loaded_and_tables_wait_for_those_before():
    ledger = Ledger()
    ledger.open(0, iter_plan([Piece("a", "draw", 0, warm="x"), Piece("b", "draw", 0, warm="y")]))
    ledger.open(1, iter_plan([Piece("c", "record", 1, after=frozenset({0}))]))
    assert ledger.waiting == 2 and [ledger.next("y").id, ledger.next("y").id, ledger.next()] == ["b", "a", None]
    for piece in (Piece("a", "draw", 0), Piece("b", "draw", 0)):
        ledger.finish(piece, None)
    assert ledger.next().id == "c"


def iter_plan(*stages):
    yield from stages


def test_images_of_another_machine_are_waited_for(tmp_path):
    folder = tmp_path / "images"
    with pytest.raises(OSError, match="1 are not seen"):
        seen(folder, ["d"], patience=0)
    late = threading.Timer(0.2, lambda: store.write_shard(folder, 0, [("d", None, "nan")]))
    late.start()
    seen(folder, ["d"], patience=30)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": 0}, "executor.workers must be an integer >= 1"),
        ({"cpus": 0}, "executor.cpus must be an integer >= 1"),
        ({"gpus": -1.0}, "executor.gpus must be a finite number >= 0"),
        ({"retries": -1}, "executor.retries must be an integer >= 0"),
        ({"address": ""}, "executor.address must be"),
    ],
)
def test_impossible_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Ray(**settings)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("executor=ray,local", "-m"), "must be the same for all cells"),
        (("executor=ray", "hydra/launcher=joblib"), "must launch the cells; got hydra/launcher=joblib too"),
        (("executor=cluster",), "executor - must be one of local, ray"),
        (("executor=ray", "executor.worker=2"), "did you mean workers"),
        (("executor=ray", "executor.workers=two"), "executor.workers must be"),
    ],
)
def test_a_command_that_cannot_be_spread_is_refused_in_one_line(tmp_path, capsys, monkeypatch, overrides, said):
    if "hydra/launcher=joblib" in overrides:  # it need not be installed for this
        monkeypatch.setattr("erasebench.command.launch.composed", lambda typed, cell: composed(typed, [*cell][:1]))
    assert launch([*overrides, f"results={tmp_path}"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0]


def test_one_process_is_the_default():
    typed = Typed(())
    with session():
        whole = composed(typed, [])
    assert whole.executor == {"_target_": "erasebench.executors.local.Local"} and not Local.spreads
    assert spread.chosen([whole], typed) is None


def test_workers_elsewhere_are_given_paths_and_settings_and_no_secret(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "ERASEBENCH_TRACEBACK", "AWS_REGION"):
        monkeypatch.setenv(name, "1")
    passed = variables()
    assert {"HF_HUB_OFFLINE", "ERASEBENCH_TRACEBACK", "PYTHONPATH"} <= set(passed)
    assert not {"HF_TOKEN", "AWS_REGION"} & set(passed)


STATE = {
    "cells": [{"label": "method=uce", "state": "at work", "erase": [1, 1], "attack": [0, 1], "draw": [32, 64],
               "score": [0, 0], "record": [0, 0]}],
    "workers": [{"node": "gpu1", "pid": 7, "device": "gpu 0", "doing": "draw erased", "since": 1.0,
                 "pieces": 3}],
    "images": [32, 64], "lost": 1, "starting": 0,
}  # fmt: skip


def test_status_says_who_does_what_and_who_is_gone(tmp_path, capsys):
    assert status([f"results={tmp_path}"]) == 0 and "nobody works" in capsys.readouterr().out
    with board.Board(tmp_path) as mine:
        mine.tell(STATE, now=True)
        said = capsys.readouterr().err
        assert "executor: 0 of 1 cells, 32 of 64 images, 1 of 1 workers busy, 1 lost" in said
        assert status([f"results={tmp_path}"]) == 0
        out = capsys.readouterr().out
        assert all(word in out for word in ("method=uce", "32/64", "gpu1", "draw erased"))
        state = json.loads(mine.path.read_text())
        (mine.path.parent / "1-abcdef.json").write_text(json.dumps({**state, "born": "1"}))
        (mine.path.parent / "2-abcdef.json").write_text("{")
        status([f"results={tmp_path}"])
        assert "has ended without a word" in capsys.readouterr().out
    with board.Board(tmp_path):
        assert [path.name for path in board.folder(tmp_path).iterdir()] == ["2-abcdef.json"]  # the dead one's is gone
    assert status([f"results={tmp_path / 'none'}"]) == 2


def test_the_table_is_drawn_anew_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("erasebench.progress.terminal", lambda: True)
    with board.Board(tmp_path) as mine:
        mine.tell(STATE, now=True)
        mine.tell(STATE)  # within a second: nothing
        assert capsys.readouterr().err.count("method=uce") == 1
        mine.tell(STATE, now=True)
        assert "\x1b[8F\x1b[J" in capsys.readouterr().err  # a line, two tables, one between
        mine.apart()
        mine.tell(STATE, now=True)
        assert "\x1b[" not in capsys.readouterr().err


def test_the_script_for_slurm_passes_shellcheck():
    checker = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=str(Path(__import__("sys").executable).parent)
    )
    if checker is None:
        pytest.skip("shellcheck is not installed")
    script = Path(board.__file__).with_name("slurm.sh")
    found = subprocess.run([checker, str(script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
