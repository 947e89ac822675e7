"""The exact command that fetches a thing a run reads, to be read and typed; nothing is run here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from erasebench.building import declared
from erasebench.store.files import locate


def hub(name: str, revision: str | None) -> str:
    """A model of the hub at a commit; without one it is refused, so that there is no command.

    >>> hub("CompVis/stable-diffusion-v1-4", "133a221")
    "hf download CompVis/stable-diffusion-v1-4 --revision 133a221 --include '*.json' '*.txt' '*.safetensors'"
    >>> hub("a/b", None)
    ''
    """
    if not revision:
        return ""
    return f"hf download {shlex.quote(name)} --revision {revision} --include '*.json' '*.txt' '*.safetensors'"


def open_clip(model: str, tag: str) -> str:
    """Weights of open_clip by their tag."""
    call = f"import open_clip as o; o.download_pretrained(o.get_pretrained_cfg({model!r}, {tag!r}))"
    return f"python -c {shlex.quote(call)}"


def declared_by(target: str) -> str:
    """What a class says in ``fetch`` fetches its weights, or nothing."""
    return str(declared(target, "fetch") or "")


def from_github(node: Mapping[str, Any], path: str) -> str:
    """One file of a repository at a commit, by its yaml's ``source``, ``file`` and ``revision``, to where it is read.

    >>> node = {"source": "github.com/a/b", "file": "c.csv", "revision": "403a67f"}
    >>> print(from_github(node, "/d/c.csv"))
    git clone -q --bare https://github.com/a/b b.git && mkdir -p /d && git -C b.git show 403a67f:c.csv > /d/c.csv
    """
    source, file, revision = (str(node.get(key) or "") for key in ("source", "file", "revision"))
    if not (source.startswith("github.com/") and file and revision) or source.count("/") != 2:
        return ""
    copy, goal = f"{PurePosixPath(source).name}.git", locate(path)
    steps = [
        f"git clone -q --bare https://{source} {copy}",
        f"mkdir -p {shlex.quote(str(goal.parent))}",
        f"git -C {copy} show {revision}:{shlex.quote(file)} > {shlex.quote(str(goal))}",
    ]
    return " && ".join(steps)
