"""What prompts share beside their group, a text, a search, a word or a concept, so that they are one cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from erasebench.types import Prompt

Place = tuple[str, str | None]  # prompt group and id


def clusters_of(prompts: Sequence[Prompt]) -> dict[Place, str]:
    """Group and id of each prompt -> its cluster.

    Target prompts of one text are a cluster. Attack prompts are one if they have one text (and embeddings) or started
    from one prompt. Of the other groups the word that the prompt source says to have filled in (``info["word"]``: the
    synonym, the concept), else a neighbour's concept, else the text.

    >>> found = clusters_of([Prompt(id=str(i), text=t, group="attack") for i, t in enumerate(["ax", "by", "ax"])])
    >>> found["attack", "0"] == found["attack", "2"] != found["attack", "1"]
    True
    """
    searches = _searches([p for p in prompts if p.group == "attack"])
    return {(p.group, p.id): searches.get(p.id, "") if p.group == "attack" else _shared(p) for p in prompts}


def _shared(prompt: Prompt) -> str:
    word = prompt.info.get("word") if prompt.group != "target" else None
    if word is None and prompt.group in ("neighbour", "unrelated") and prompt.relation:
        word = prompt.concept
    return f"word {word}" if word else f"text {_digest(prompt)}"


def _digest(prompt: Prompt) -> str:
    embeds = b"" if prompt.embeds is None else prompt.embeds.tobytes()
    return hashlib.sha256(prompt.text.encode() + embeds).hexdigest()[:12]


def _searches(prompts: Sequence[Prompt]) -> dict[str, str]:
    """Id -> the first text that it shares, be it over a third prompt, a text or a start with."""
    first: dict[str, str] = {}

    def root(name: str) -> str:
        while first.setdefault(name, name) != name:
            name = first[name]
        return name

    for prompt in prompts:
        if prompt.source_id:
            first[root(f"from {prompt.source_id}")] = root(f"text {_digest(prompt)}")
    return {p.id: root(f"text {_digest(p)}") for p in prompts}
