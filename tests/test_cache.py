"""The store's own command: sizes, what no run refers to, leftovers, damage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from erasebench.cache import main
from erasebench.store import inventory
from erasebench.store.claims import machine
from tests.small import SMALL, small_run


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    small_run(results, "method=uce")
    small_run(results, "method=none")
    return results


@pytest.fixture
def results(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "results")


def age(folder, seconds=2 * 24 * 3600):
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_the_table_adds_up_and_names_the_model(results, capsys):
    assert main([f"results={results}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [line.split() for line in lines[2:] if line and "pruned" not in line]
    steps = {cell[0]: cell[1:] for cell in cells}
    assert set(steps) == {"erase", "score", "images", "attack", "tables", "all"}
    assert all(cell[1] == "emoji" for cell in cells[:-1])
    stored = [p for step in list(steps)[:-1] for p in (results / "cache" / step).rglob("*") if p.is_file()]
    counted = sum(p.stat().st_size for p in stored)
    assert float(steps["all"][-1]) == pytest.approx(counted / 2**20, abs=0.06)


@pytest.mark.slow
def test_what_a_run_refers_to_is_never_pruned_and_the_rest_only_if_told_to(results, capsys):
    before = files(results)
    age(results)
    assert main([f"results={results}", "--prune", "--yes"]) == 0
    assert files(results) == before
    lost = next(p for p in results.glob("runs/**/uce*/**/run.json")).parent
    shutil.rmtree(lost)
    before = files(results)
    capsys.readouterr()
    assert main([f"results={results}", "--prune"]) == 0  # says, and does nothing
    assert "would be deleted" in capsys.readouterr().out and files(results) == before
    assert main([f"results={results}", "--prune", "--yes"]) == 0
    gone = {name.split("/")[1] for name in set(before) - set(files(results))}
    assert gone == {"erase", "images", "score", "tables"}
    kept = small_run(results, "method=none")
    assert kept.cached
    again = small_run(results, "method=uce")
    assert not again.cached and again.record["steps"]["draw"]["reused"] > 0  # the original's images are there


@pytest.mark.slow
def test_the_young_and_the_held_are_left_alone(results):
    young = results / "cache" / "erase" / "1234"
    young.mkdir()
    (young / "manifest.json").write_text("{}")
    held = inventory.Watch().take(results / "cache" / "erase" / ".5678.claim")
    assert main([f"results={results}", "--prune", "--yes"]) == 0
    assert young.exists() and held.path.exists()
    held.release()
    age(young)
    assert main([f"results={results}", "--prune", "--yes"]) == 0
    assert not young.exists()


@pytest.mark.slow
def test_leftovers_of_killed_processes_go(results):
    cache = results / "cache"
    dead = cache / "erase" / ".77.claim"
    dead.write_text(json.dumps({"machine": machine(), "pid": 2**22 + 1, "started": "1", "token": "t"}))
    old = cache / "score" / f".88.{'0' * 32}.tmp"
    old.mkdir()
    (old / "scores.json").write_text("[]")
    os.utime(old, (1, 1))
    step = next(p for p in (cache / "erase").iterdir() if not p.name.startswith("."))
    work = cache / "work" / f"erase-{step.name}"
    work.mkdir(parents=True)
    assert main([f"results={results}", "--prune", "--yes"]) == 0
    assert not dead.exists() and not old.exists() and not work.exists() and step.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["erase/*/erasure.json", "score/*/scores.json", "images/*/*.parquet"])
def test_check_names_what_is_damaged(results, kind, capsys):
    assert main([f"results={results}", "--check"]) == 0
    path = next((results / "cache").glob(kind))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert main([f"results={results}", "--check"]) == 1
    said = capsys.readouterr()
    assert "1 damaged" in said.out and (path.parent.name in said.err)


def test_bad_input_is_one_line(tmp_path, capsys):
    assert main([f"results={tmp_path}"]) == 2
    assert main([f"results={tmp_path}", "--yes"]) == 2
    assert main(["resluts=x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)


def mounting_allowed() -> bool:
    probe = ["unshare", "--map-root-user", "--mount", "true"]
    return bool(shutil.which("unshare")) and subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not mounting_allowed(), reason="needs user namespaces")
def test_a_finished_run_is_shown_from_a_read_only_disk_and_another_is_refused_in_one_line(results):
    before = files(results)

    def read_only(*overrides):
        lock = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        command = [sys.executable, "-m", "erasebench", *SMALL, *overrides, f"results={results}"]
        alone = ["unshare", "--map-root-user", "--mount", "sh", "-c", lock, str(results)]
        return subprocess.run([*alone, *command], capture_output=True, text=True, timeout=300)

    shown, refused = read_only("method=uce"), read_only("method=rece")
    assert shown.returncode == 0 and "cat erased by uce" in shown.stdout, shown.stderr
    assert refused.returncode == 2 and "cannot be written (Read-only file system)" in refused.stderr.splitlines()[-1]
    assert files(results) == before
