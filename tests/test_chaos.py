"""A little of ``benchmarks.chaos``, and what it found: claims are whole, remembered hashes are checked."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from erasebench.store import claims
from erasebench.store.claims import Claim, Watch, claimed, holder_of
from erasebench.store.sources import folder_hash, remembered

FORK = multiprocessing.get_context("fork")
FEW = ("kills=1", "crashes=1", "disks=1", "crowds=0", "flips=57", "reruns=0", "memory=0", "seed=1")


@pytest.mark.slow
def test_a_little_chaos_changes_nothing():
    command = [sys.executable, "-m", "benchmarks.chaos", *FEW]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {line.split(" | ")[0].strip("| "): line for line in done.stdout.splitlines() if line.startswith("| ")}
    assert {"kills", "crashes", "disks", "flips"} <= set(counts)
    assert all("same" in counts[name] for name in ("kills", "crashes", "flips")), done.stdout
    assert "same" in counts["disks"] or "left out" in counts["disks"], done.stdout


def die_before_the_claim(path: Path) -> None:
    os.link = lambda *_: os._exit(9)
    Claim.make(path, (), {})


def test_a_process_killed_while_it_claims_leaves_no_claim(tmp_path):
    path = tmp_path / ".k.claim"
    job = FORK.Process(target=die_before_the_claim, args=(path,))
    job.start()
    job.join(30)
    assert job.exitcode == 9 and not path.exists()
    claim = Watch().take(path)  # at once, not when nobody has touched it for two minutes
    assert claim is not None
    claim.release()


def test_a_disk_without_hard_links_has_claims_all_the_same(tmp_path, monkeypatch):
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / ".k.claim"
    with claimed(path, "erase") as mine:
        assert mine and (holder_of(path) or {})["pid"] == os.getpid()
        assert Claim.make(path, (), {}) is None and Watch().take(path) is None
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_claim_and_no_leftover(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        Claim.make(tmp_path / ".k.claim", (), {})
    assert not list(tmp_path.iterdir())


def test_what_a_killed_claimer_left_is_removed_with_the_step_s_next_work_path(tmp_path):
    from erasebench.store.files import work_path

    job = FORK.Process(target=die_before_the_claim, args=(tmp_path / ".k.claim",))
    job.start()
    job.join(30)
    assert [claims.place() in p.name for p in tmp_path.iterdir()] == [True]
    work_path(tmp_path / "k")
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_in_remembered_hashes_is_noticed(tmp_path):
    memory, rng = tmp_path / "fingerprints.json", random.Random(0)
    for name in ("a", "b"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_text(name)
    good = folder_hash(tmp_path / "model", memory)
    whole, known = memory.read_bytes(), remembered(memory)
    assert len(known) == 2
    for _ in range(300):
        at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
        memory.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        assert remembered(memory) in ({}, known)
        assert folder_hash(tmp_path / "model", memory) == good
