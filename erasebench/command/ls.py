"""What there is to choose from, with a sentence and the paper of each.

    erasebench ls methods|attacks|concepts|evaluators|experiments|models|prompts|judges|GROUP [model=emoji]

With ``model=`` concepts made for another model are left out, and what has settings of its own for that model (its
adaptation) is marked with a star. ``config_dir=DIR`` adds your own configs.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from erasebench import conf_folder
from erasebench.command.arguments import command, parse
from erasebench.command.choices import groups, hint, stems

USAGE = "usage: erasebench ls methods|attacks|concepts|evaluators|experiments|models|prompts|judges [model=NAME]"
ADAPTED = ("recipe", "strength", "budget")


@dataclass(frozen=True)
class Entry:
    """One choice: its name, a sentence, the arXiv id of its paper or "", and whether the model has settings for it."""

    name: str
    about: str
    paper: str = ""
    adapted: bool = False


def entries(group: str, folders: Sequence[Path], model: str = "") -> list[Entry]:
    """The choices of a group, those that suit a model if one is named."""
    head = _head(_file(folders, "model", model)) if model else ""
    adaptation = _adaptation(folders, model) if model else ""
    found = []
    for name in stems(folders, group):
        file = _file(folders, group, name)
        comment = _head(file)
        made_for = re.match(r"for ([\w. ]+)", comment)
        if model and made_for and made_for[1].strip(". ") not in head:
            continue
        doc = _docstring(file)
        about = _sentence("" if made_for else comment) or _terse(file) or _sentence(doc)
        paper = re.search(r"arXiv[:\s]*(\d{4}\.\d{4,5})", f"{comment} {doc}")
        own = bool(adaptation) and any(_exists(folders, kind, f"{name}_{adaptation}") for kind in ADAPTED)
        found.append(Entry(name, about, paper[1] if paper else "", own))
    return found


def _file(folders: Sequence[Path], group: str, name: str) -> Path:
    return next(f / group / f"{name}.yaml" for f in folders if (f / group / f"{name}.yaml").is_file())


def _exists(folders: Sequence[Path], group: str, name: str) -> bool:
    return any((folder / group / f"{name}.yaml").is_file() for folder in folders)


def _head(file: Path) -> str:
    """The comment a yaml begins with, as one line."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.lstrip("# ").strip())
    return " ".join(lines)


def _docstring(file: Path) -> str:
    """How the docstrings of the class a yaml builds and of its module begin, read without importing it."""
    target = re.search(r"^\s*_target_:\s*([\w.]+)", file.read_text(encoding="utf-8"), re.M)
    if target is None:
        return ""
    module, _, name = target[1].rpartition(".")
    path = Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py")
    if not path.is_file():
        return ""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    docs = [ast.get_docstring(tree) or "", *(ast.get_docstring(node) or "" for node in inner)]
    return " ".join(" ".join(paragraph for doc in docs for paragraph in doc.split("\n\n")[:2]).split())


def _sentence(text: str) -> str:
    """The first sentence, without an arXiv id, which has its own column.

    >>> _sentence("ESD-x (arXiv:2303.07345): github.com/a/b. More."), _sentence("Control: other seeds. More.")
    ('ESD-x', 'Control: other seeds')
    """
    first = re.split(r"(?<=[a-z0-9)\]\"])[.;] ", text, maxsplit=1)[0]
    first = re.sub(r"\s*\((?:[^()]*, )?arXiv[:\s]*\d{4}\.\d{4,5}\)|,?\s*arXiv[:\s]*\d{4}\.\d{4,5}", "", first)
    return re.sub(r":?\s*github\.com/.*$", "", first).strip(" .,:(")


def _terse(file: Path) -> str:
    """What a yaml without a comment says of itself: a concept's kind and phrases."""
    text = file.read_text(encoding="utf-8")
    kind, phrases = re.search(r"^kind: (\w+)", text, re.M), re.search(r"^phrases: \[(.*)\]", text, re.M)
    return f"{kind[1]}: {phrases[1]}" if kind and phrases else ""


def _adaptation(folders: Sequence[Path], model: str) -> str:
    found = re.search(r"override /adaptation: (\w+)", _file(folders, "model", model).read_text(encoding="utf-8"))
    return found[1] if found else ""


def listing(arguments: Sequence[str]) -> str:
    """The text that ``erasebench ls`` prints."""
    given = parse(arguments, {"group": "", "model": "", "config_dir": ""}, plain=["group"])
    folders = [*([Path(given["config_dir"])] if given["config_dir"] else []), conf_folder()]
    known = groups(folders)
    group = given["group"]
    if not group:
        return "\n".join(f"{name:<14} {len(stems(folders, name))} choices" for name in known)
    group = group if group in known else group.removesuffix("s")
    if group not in known:
        raise ValueError(f"group - must be one of {', '.join(known)}; got {given['group']!r}; {hint(group, known)}")
    models, model = stems(folders, "model"), given["model"]
    if model and model not in models:
        raise ValueError(f"model - must be one of {', '.join(models)}; got {model!r}; {hint(model, models)}")
    return table(entries(group, folders, given["model"]))


def table(found: Sequence[Entry]) -> str:
    """Names, sentences and papers in columns, as wide as the terminal."""
    wide = max(len(e.name) for e in found) + 2 if found else 0
    papers = max((len(e.paper) for e in found), default=0)
    papers = papers + len("arXiv:") + 2 if papers else 0
    room = max(30, min(shutil.get_terminal_size((120, 24)).columns, 140) - wide - papers)
    lines = []
    for e in found:
        about = e.about if len(e.about) < room else f"{e.about[: room - 4]}..."
        paper = f"arXiv:{e.paper}" if e.paper else ""
        lines.append(f"{e.name + ('*' if e.adapted else ''):<{wide}}{about:<{room}}{paper}".rstrip())
    if any(e.adapted for e in found):
        lines.append("* has settings of its own for this model; adaptation=paper runs it as published")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the choices; returns the exit code."""
    return command(USAGE, __doc__, arguments, listing)
