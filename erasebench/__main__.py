"""The command: ``erasebench method=rece attack=ringabell``, or ``python -m erasebench ...``; see ``--help``.

What a run needs is imported for a run only: help, lists and tables start at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from erasebench.command.choices import hint, nearest
from erasebench.command.pages import COMMANDS, help_page, there, version_line

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a small command, or what is composed of key=value; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    first = given[0] if given else ""
    if first in COMMANDS and (module := there(first)):
        code: int = import_module(module).main(given[1:])
        return code
    if {"-h", "--help", "help"} & set(given):
        print(help_page())
        return 0
    if first in ("--version", "version"):
        print(version_line())
        return 0
    if first.isidentifier() and nearest(first, COMMANDS):
        print(f"error: {first} - must be a command ({', '.join(COMMANDS)}); {hint(first, COMMANDS)}", file=sys.stderr)
        return 2
    from erasebench.command.launch import launch

    return launch(given)


if __name__ == "__main__":
    sys.exit(main())
