"""The default run without a network and with a home that cannot be written: same tables, no look-up, no file outside.

Seen by strace in namespaces of its own, where this machine allows both.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from erasebench.report.tables import read_scores

RUN = [sys.executable, "-m", "erasebench", "attack=ringabell", "attack.generations=2", "attack.population=4",
       "prompts.n=4", "model.steps=2", "model.batch_size=4",
       "evaluator=[classifier,asr,clip_score,fid,spillover,nudenet]"]  # fmt: skip
ALONE = ["unshare", "--map-root-user", "--net", "--mount"]
CALLS = "connect,sendto,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,symlink,link,linkat"


def allowed() -> bool:
    """Whether a process can be put into namespaces and watched here."""
    if not shutil.which("strace") or not shutil.which("unshare"):
        return False
    probe = ["strace", "-f", "-o", os.devnull, *ALONE, "sh", "-c", "mount -t tmpfs -o ro none /mnt"]
    return subprocess.run(probe, capture_output=True).returncode == 0


def run(results: Path, home: Path, log: Path | None = None) -> str:
    """One run with all evaluators; with a ``log``: alone, with a read-only home, its system calls written down."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*RUN, f"results={results}"]
    if log is not None:
        shell = 'mount -t tmpfs -o ro none "$HOME" && exec "$@"'
        watched = ["strace", "-f", "-qq", "-e", f"trace={CALLS}", "-o", str(log)]
        command = [*watched, *ALONE, "sh", "-c", shell, "sh", *command]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, cwd=results.parent)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not allowed(), reason="needs strace and user namespaces")
def test_nothing_is_looked_up_and_nothing_is_written_outside(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    said = run(tmp_path / "alone", home, tmp_path / "strace.txt")
    assert "atplotlib" not in said
    calls = (tmp_path / "strace.txt").read_text(errors="replace").splitlines()
    assert len(calls) > 1000  # it was watched
    assert not [c for c in calls if re.search(r"sa_family=AF_INET6?\b", c)]
    made = [c for c in calls if re.search(r"O_CREAT|\b(mkdir|rename|creat|link|symlink)\w*\(", c)]
    outside = [c for c in made if str(tmp_path / "alone") not in c and " = -1 " not in c]
    temporary = re.compile(r'"(/tmp|/var/tmp|/dev/shm|/dev/null)')
    assert not [c for c in outside if not temporary.search(c)], outside[:5]
    left = [p for c in outside for p in re.findall(r'"(/(?:var/)?tmp/[^"]+|/dev/shm/[^"]+)"', c) if Path(p).exists()]
    assert not [p for p in left if not p.startswith(str(tmp_path))]
    assert list(home.iterdir()) == []

    run(tmp_path / "usual", home)
    tables = [read_scores(next((tmp_path / name).glob("runs/**/scores.parquet"))) for name in ("alone", "usual")]
    assert tables[0].equals(tables[1])
    assert json.loads(next((tmp_path / "alone").glob("runs/**/run.json")).read_text())["flags"]
    assert not [p for p in home.rglob("*") if "onnx" in p.name.lower() or "device" in p.name.lower()]
