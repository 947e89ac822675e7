"""Provenance: what is recorded, without torch, git or a writable home."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from erasebench import __version__
from erasebench.store import provenance


def test_the_record_is_json_and_says_what_ran():
    record = json.loads(json.dumps(provenance.record()))
    assert record["packages"]["erasebench"] == __version__ and record["packages"]["numpy"]
    assert record["hardware"]["cores"] >= 1 and record["hardware"]["ram_gb"] > 0
    assert record["python"].startswith("3.") and set(record["git"]) == {"commit", "dirty"}


def test_no_torch_is_imported_for_it():
    code = "import sys; from erasebench.store import provenance; provenance.record(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=provenance.CHECKOUT, check=True
    )
    assert done.stdout.strip() == "False"


def test_git_is_reported_only_for_a_checkout_of_its_own(tmp_path, monkeypatch):
    def git(*args):
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *args],
            check=True,
            capture_output=True,
        )

    try:
        git("init")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git is not installed")
    (tmp_path / "a.txt").write_text("a")
    git("add", "a.txt")
    git("commit", "-m", "a")
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path.resolve())
    found = provenance.git()
    assert len(found["commit"]) == 40 and found["dirty"] is False
    (tmp_path / "a.txt").write_text("b")
    assert provenance.git()["dirty"] is True
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path.resolve() / "inside")  # installed inside somebody's repository
    assert provenance.git() == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", "")
    assert provenance.git() == {"commit": None, "dirty": None}
