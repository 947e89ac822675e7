"""Make ``erasebench_open``'s data from ``seeds.yaml`` and WordNet: concepts, prompts and a yaml for each target.

    apt-get install wordnet-base
    python -m erasebench.prompts.open.make [--wordnet /usr/share/wordnet] [--out .]

Writes ``concepts.csv`` and ``prompts.csv`` beside this file (``--out`` is the repository) and
``conf/concept/<target>.yaml``. A neighbour that is not what ``seeds.yaml`` claims is an error, not a row.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from erasebench.prompts.files import place_hash
from erasebench.prompts.grammar import fill
from erasebench.prompts.open.wordnet import FOLDER, WordNet

HERE = Path(__file__).parent
OBJECTS = (
    "a photo of a {x}", "a close-up photo of a {x}", "a photo of a {x} in bright daylight",
    "a black and white photo of a {x}",
    "a studio photo of a {x} on a plain background", "a watercolour of a {x}", "a pencil sketch of a {x}",
    "an oil painting of a {x}", "a detailed illustration of a {x}", "a {x} seen from a few steps away",
)  # fmt: skip
ARTISTS = (
    "a painting by {x}", "a painting in the style of {x}", "a landscape by {x}", "a portrait of a man by {x}",
    "a still life in the style of {x}", "a village scene by {x}", "a painting of a tree in the style of {x}",
    "a painting of a harbour by {x}", "a picture of a garden by {x}", "a picture of a storm at sea in the style of {x}",
)  # fmt: skip
PER_TEXT = {"target": 10, "paraphrase": 3, "neighbour": 5, "unrelated": 2}  # prompts for each text of a role
UNRELATED = 6  # controls of each target


@dataclass(frozen=True)
class Row:
    """One concept beside a target: ``text`` is what a prompt says, ``source`` who says that it belongs there."""

    target: str
    dimension: str
    role: str
    text: str
    word: str
    source: str


def concepts(seeds: Mapping[str, Any], net: WordNet) -> list[Row]:
    """Every target with its paraphrases, neighbours and controls.

    Raises:
        ValueError: a word or a relation that WordNet does not have.
    """
    rows: list[Row] = []
    for dimension, targets in seeds.items():
        for target, seed in targets.items() if dimension != "unrelated" else ():
            text = seed.get("text", target.replace("_", " "))
            rows.append(Row(target, dimension, "target", text, seed["word"], f"WordNet {seed['word']}"))
            own = {word.casefold().replace("_", " ") for word in net.synsets[net.find(seed["word"])].words}
            for said in seed["say"]:
                source = f"WordNet {seed['word']}" if said.casefold() in own else "ours"
                rows.append(Row(target, dimension, "paraphrase", said, seed["word"], source))
            for near, claim in seed["near"].items():
                rows.append(_neighbour(net, target, dimension, seed, near, claim))
            taken = {near.casefold() for near in seed["near"]}
            rows += list(_controls(net, target, dimension, seed["word"], taken, seeds["unrelated"]))
    return rows


def _neighbour(net: WordNet, target: str, dimension: str, seed: Mapping[str, Any], near: str, claim: str) -> Row:
    if dimension == "binomial":
        return Row(target, dimension, "neighbour", near, "", f"ours: the fixed pair {claim!r}")
    if dimension == "artistic":
        source = f"ours: {seed['about']}"
        if claim:
            painters = {net.find("painter.1"), net.find("old_master.1"), net.find("artist.1")}
            if not painters & set(net.above(net.find(claim))):
                raise ValueError(f"{near} must be an artist in WordNet; got {claim}; name another sense, or ''")
            source += f"; WordNet {claim} is an artist"
        return Row(target, dimension, "neighbour", near, claim, source)
    found = net.relation(net.find(seed["word"]), net.find(claim))
    if dimension == "subset_superset" and not found:
        raise ValueError(f"{near} must be above, below or beside {target} in WordNet; got {claim}; name another")
    said = f"WordNet {found}" if found else "ours"
    return Row(
        target, dimension, "neighbour", near, claim, said if dimension != "visual" or not found else f"ours; {said}"
    )


def _controls(
    net: WordNet, target: str, dimension: str, word: str, taken: set[str], pool: Mapping[str, str]
) -> Iterator[Row]:
    """The first of the pool, in an order that the target decides, that share nothing special with it."""
    own, found = net.find(word), 0
    for text in sorted(pool, key=lambda text: place_hash("erasebench_open", target, text)):
        up, *_ = net.shared(own, net.find(pool[text]))
        if found < UNRELATED and text not in taken and net.general(up):
            found += 1
            yield Row(
                target,
                dimension,
                "unrelated",
                text,
                pool[text],
                f"WordNet: share no more than {net.synsets[up].words[0]}",
            )
    if found < UNRELATED:
        raise ValueError(f"{target} must have {UNRELATED} unrelated controls; got {found}; add to seeds.yaml")


def prompts(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """The prompts of all rows; templates by turns within a role, seeds by place."""
    turns: dict[tuple[str, str], int] = {}
    for row in rows:
        artist = row.dimension == "artistic" and row.role != "unrelated"
        templates = ARTISTS if artist else OBJECTS
        for _ in range(PER_TEXT[row.role]):
            place = turns.get((row.target, row.role), 0)
            turns[row.target, row.role] = place + 1
            yield {
                "id": f"{row.target}-{row.role}-{place:02d}", "target": row.target, "dimension": row.dimension,
                "role": row.role, "concept": row.target if row.role in ("target", "paraphrase") else row.text,
                "word": row.text, "prompt": fill(templates[place % len(templates)], {"x": row.text}),
                "seed": place_hash("erasebench_open", row.target, row.role, place),
            }  # fmt: skip


def concept_yaml(rows: Sequence[Row]) -> str:
    """The text of ``conf/concept/<target>.yaml``; ``rows`` are one target's."""
    first = rows[0]
    texts = {role: [row.text for row in rows if row.role == role] for role in PER_TEXT}
    style = first.dimension == "artistic"
    body = {
        "_target_": "erasebench.types.Concept",
        "name": first.target,
        "kind": "style" if style else "object",
        "phrases": [*texts["target"], *texts["paraphrase"]],
        "anchor": "art" if style else "",
        "neighbours": {first.dimension: texts["neighbour"], "unrelated": texts["unrelated"]},
        "preserve": [],
    }
    dumped = yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    return f"# for Stable Diffusion; made by erasebench/prompts/open/make.py\n{dumped}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=HERE.parents[2], help="the repository")
    given = parser.parse_args()
    rows = concepts(yaml.safe_load((HERE / "seeds.yaml").read_text(encoding="utf-8")), WordNet(given.wordnet))
    made = list(prompts(rows))
    folder, conf = given.out / "erasebench/prompts/open", given.out / "conf/concept"
    for place in (folder, conf):
        place.mkdir(parents=True, exist_ok=True)
    for name, table in (("concepts", [asdict(row) for row in rows]), ("prompts", made)):
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, table[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    for target in dict.fromkeys(row.target for row in rows):
        text = concept_yaml([row for row in rows if row.target == target])
        (conf / f"{target}.yaml").write_text(text, encoding="utf-8")
    names = {row.text if row.role != "target" else row.target for row in rows if row.role != "paraphrase"}
    sys.stdout.write(f"{len(made)} prompts, {len({row.target for row in rows})} targets, {len(names)} concepts\n")


if __name__ == "__main__":
    main()
