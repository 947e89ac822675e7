"""The command: ``python -m erasebench method=rece attack=ringabell``; see ``--help``."""

from __future__ import annotations

import logging
import os
import sys
import warnings

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hydra
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from erasebench import conf_folder
from erasebench.one_run import run
from erasebench.report import display

failures: list[str] = []


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
def cell(cfg: DictConfig) -> None:
    """Run one cell and print its table; a bad cell is one line, and does not stop the other cells of a grid."""
    try:
        result = run(cfg)
    except (ValueError, TypeError, KeyError, OSError, FloatingPointError, ImportError, OmegaConfBaseException) as error:
        if os.environ.get("ERASEBENCH_TRACEBACK"):
            raise
        message = str(error.args[-1] if isinstance(error, KeyError) else error).strip().replace("\n", " ")
        failures.append(message)
        print(f"error: {type(error).__name__}: {message}", file=sys.stderr)
        return
    print(display.closing(result), flush=True)


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    cell()
    if failures:
        print(f"{len(failures)} cell(s) failed (ERASEBENCH_TRACEBACK=1 shows where)", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
