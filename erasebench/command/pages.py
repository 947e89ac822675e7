"""What ``--help`` and ``--version`` say: one screen, and one line."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from erasebench import __version__

COMMANDS = {  # name -> what it does; the module erasebench.<name>, or erasebench.command.<name>
    "ls": "what there is: ls methods, ls concepts model=emoji",
    "doctor": "what this machine has, what a run lacks and how to fetch it, what it will take",
    "needs": "which files and packages a run reads, and where to get them",
    "leaderboard": "one table of all runs",
    "compare": "a picture of all methods side by side",
    "paper": "the tables of papers, measured beside published",
    "report": "pages to browse: boards, every image, a decision summary for each erased model",
    "export": "an erased model for other tools",
    "convert": "pickled weights into safetensors",
    "found": "the prompts an attack found, as CSV",
    "status": "how far the workers of executor=ray are",
    "cache": "what is stored for the runs: its size, whether it is whole, what no run needs",
}

HELP = """\
erasebench: erase a concept from a text-to-image model, attack the erased model, measure both.

  erasebench method=rece attack=ringabell concept=cat          one cell, on the embedded model
  erasebench -m method=none,uce,rece attack=none,ringabell     a sweep: every combination
  erasebench -m method=uce method.lamb=0.1,1,5                 a sweep of a setting: three rows
  erasebench model=sd14 model.path=FOLDER concept=church       Stable Diffusion from a folder
  erasebench experiment=rece_nudity_sd14                       a published protocol
  erasebench --config-dir mine method=mine                     your own: one class, one yaml

Groups, group=choice; `erasebench ls methods` lists the choices of one:
  model      what is erased from: emoji (embedded, default), emoji2, sd14, any folder by model.path=
  concept    what is erased: cat (default), nudity, van_gogh, ...; several with 'also=[dog,sun]'
  method     how it is erased: rece (default), uce, esd_x, ..., none; yours by method=checkpoint
  attack     how it is searched for afterwards: none (default), ringabell, p4d, prompt sets, ...
  evaluator  what is measured, a list: 'evaluator=[classifier,fid]'
  prompts    what is drawn: templates of the model's world, a published set, csv
  judge      what says whether a concept is in an image; a model or concept brings its own
  experiment a published protocol, whole
  adaptation what is changed for a small model; adaptation=paper: nothing
  executor   who does the work: local (default), ray: many workers, docs/clusters.md
Settings, key=value, of these too (method.lamb=3, prompts.n=5): erasebench --cfg job shows all.
  seed=0  results=results  data=data  name=LABEL  together=joint|sequence

Other commands, each with --help:
{commands}
Options: -m: sweep. --dry-run: what it takes. --cfg job: show the config.
         --version. -sc install=bash: completion.
Stopped runs go on where they were when the same command is given. Exit code 0: all is well,
2: a mistake in what was given (one line says which), 1: a fault of erasebench. More: docs/usage.md"""


def there(name: str) -> str | None:
    """The module of a small command, or None if this version has no such command."""
    from importlib.util import find_spec

    for module in (f"erasebench.{name}", f"erasebench.command.{name}"):
        if (spec := find_spec(module)) is not None and spec.submodule_search_locations is None:
            return module
    return None


def help_page() -> str:
    """One screen: at most 40 lines of 100 columns."""
    found = [name for name in COMMANDS if there(name)]
    lines = [f"  {name:<11} {COMMANDS[name]}" for name in found]
    return HELP.format(commands="\n".join(lines))


def version_line() -> str:
    """``erasebench 0.1.0, python 3.11.9, torch 2.6.0``; torch is asked for its version, not loaded."""
    try:
        torch = f"torch {version('torch')}"
    except PackageNotFoundError:
        torch = "no torch"
    return f"erasebench {__version__}, python {platform.python_version()}, {torch}"
