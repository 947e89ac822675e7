"""The command: ``python -m erasebench method=rece attack=ringabell``, or ``erasebench ...``; see ``--help``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code; what a run needs is imported only for a run."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    from erasebench.command.launch import launch

    return launch(arguments)


if __name__ == "__main__":
    sys.exit(main())
