"""How much Ring-A-Bell's search saves against encoding everybody in every generation; same seed, same text.

    python benchmarks/attack.py [--model FOLDER] [--population 200] [--generations 300] [--tokens 16]

Without a folder: the embedded model's text encoder. Prints, for one prompt, wall and CPU seconds, the sequences encoded
and those the algorithm asked for. CPU seconds are the figure to compare on a machine that does other work too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/methods.py would shadow the package methods

from attacks.pairs import TextPairs
from attacks.ringabell import Memo, RingABell, Space, run
from erasebench import diffusion
from erasebench.types import Concept

EMBEDDED = Path(__file__).parents[1] / "erasebench" / "emoji" / "weights"
CAT = Concept(name="cat", phrases=("cat", "kitty", "kitten"), anchor="dog")
PAIRS = TextPairs(pairs=(("a {} on a blue background", "a blue background"), ("a picture of a {}", "a picture")))
TEXT = "a noto drawing of a cat on a red background"


def timed(
    name: str, attack: RingABell, space: Space, losses: Callable[..., Any], known: dict[bytes, float] | None
) -> Any:
    """One search: its name, wall and CPU seconds, sequences encoded and asked for, and the ids found."""
    asked = 0

    def counted(people: Any) -> Any:
        nonlocal asked
        asked += len(people)
        return losses(people)

    wall, cpu = time.perf_counter(), time.process_time()
    ids, _, _ = run(attack.steps(space.allowed, TEXT), counted)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return name, wall, cpu, asked if known is None else len(known), asked, ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="diffusers folder; default: the embedded model")
    for name, default in (("population", 200), ("generations", 300), ("tokens", 16), ("batch-size", 16), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rows", type=int, help="leading rows that count; default: all, as in the paper")
    args = parser.parse_args()
    pipe = diffusion.load(args.model)
    attack = RingABell(vector=PAIRS, **{name: value for name, value in vars(args).items() if name != "model"})
    space = Space.of(pipe, attack.tokens, attack.rows)
    goal = diffusion.encode(pipe, [TEXT])[0].double().cpu() + attack.eta * PAIRS.vector(pipe, CAT)
    goal = goal[: space.rows].float()
    memo = Memo(lambda people: space.losses(people, goal, attack.batch_size))
    space.losses(np.repeat(space.allowed[:1], attack.tokens)[None], goal, 1)  # first pass allocates

    rows = [
        timed("everybody, whole population a batch", attack, space, lambda x: space.losses(x, goal, len(x)), None),
        timed("everybody", attack, space, lambda x: space.losses(x, goal, attack.batch_size), None),
        timed("erasebench", attack, space, memo, memo.known),
    ]
    print(f"{torch.get_num_threads()} threads; {vars(args)}")
    print(f"{'':36}{'wall s':>9}{'CPU s':>9}{'encoded':>9}{'asked':>9}{'asked/CPU s':>13}{'faster':>8}  same text")
    *_, found = rows[-1]
    for name, wall, cpu, encoded, asked, ids in rows:
        same = bool((ids == found).all())
        figures = f"{wall:9.1f}{cpu:9.1f}{encoded:9d}{asked:9d}{asked / cpu:13.0f}{rows[0][2] / cpu:7.2f}x"
        print(f"{name:36}{figures}  {'yes' if same else 'NO'}")


if __name__ == "__main__":
    main()
