"""Where a result came from: versions, git, hardware, configuration hash, seconds and memory. Imports no torch."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from erasebench import __version__

PACKAGES = (
    "torch", "torchvision", "diffusers", "transformers", "tokenizers", "accelerate", "safetensors",
    "numpy", "scipy", "pandas", "pyarrow", "pillow", "hydra-core", "omegaconf", "torchmetrics", "torch-fidelity",
    "open_clip_torch", "nudenet", "onnxruntime",
)  # fmt: skip
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED")
CHECKOUT = Path(__file__).resolve().parents[2]


def versions() -> dict[str, str]:
    """Installed versions of the packages a number can depend on; those not installed are left out."""
    found = {"erasebench": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(CHECKOUT), *args],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def git() -> dict[str, Any]:
    """Commit and whether tracked files differ from it; both None if this is not a checkout of its own.

    A copy installed inside somebody else's repository does not report that repository's commit.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != CHECKOUT:
        return {"commit": None, "dirty": None}
    commit, status = _git("rev-parse", "--verify", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _ram_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (OSError, ValueError):
        return None


def _gpu() -> str | None:
    """Name of the first GPU, asked of torch only if the program has loaded it already."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name(0))


def hardware() -> dict[str, Any]:
    """CPU model, cores this process may use, RAM in GiB, GPU name or None."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {"cpu": _cpu_model(), "cores": cores, "ram_gb": _ram_gb(), "gpu": _gpu()}


def record() -> dict[str, Any]:
    """Everything above in JSON values, for run.json; holds no user name, host name or path."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "packages": versions(),
        "git": git(),
        "hardware": hardware(),
        "environment": {name: os.environ[name] for name in THREADS if name in os.environ},
    }


def peak_rss_mb() -> float:
    """Highest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)  # macOS counts bytes, Linux KiB
