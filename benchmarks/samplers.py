"""How few steps do for the second edition of the embedded model: accuracy, FID and time of samplers, same noise.

    python -m benchmarks.samplers [n=4]

n pictures (2 or more) a concept by name and half as many by synonym, of the sentences and seeds of ``training.quality``
(``held_out``), guidance 3, the independent judge. CPU seconds are of this process; the judge's share is in all of them
alike. ``ddim`` is the model's own scheduler; the others' pictures are compared with the first row's.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from benchmarks.blind import EDITIONS
from erasebench import diffusion
from erasebench.diffusion.schedulers import scheduler_of
from erasebench.emoji.training.quality import _cases, generation

ROWS = (
    ("ddim", 20), ("ddim", 10), ("dpm++", 12), ("dpm++", 10), ("dpm++", 8), ("unipc", 12), ("unipc", 10), ("unipc", 8),
    ("unipc", 6),
)  # fmt: skip


def main(given: list[str]) -> None:
    n = int(dict(word.split("=", 1) for word in given).get("n", 4))
    pipe = diffusion.load(EDITIONS["second"])
    cases, first, own = _cases("held_out", n), None, pipe.scheduler
    print("| sampler, steps | concept | synonym | style | background | FID | CPU s | to the first |")
    print("|---|---|---|---|---|---|---|---|")
    for name, steps in ROWS:
        pipe.scheduler = own if name == "ddim" else scheduler_of(pipe, name)
        started = time.process_time()
        found, images = generation(pipe, cases, steps, 3.0)
        seconds = time.process_time() - started
        pixels = np.stack([np.asarray(image, np.float64) / 255 for image in images])
        first = pixels if first is None else first
        shares = " | ".join(f"{100 * found[key][0]:.1f}" for key in ("concept", "synonym", "style", "background"))
        apart = float(np.sqrt(np.square(pixels - first).mean()))
        print(f"| {name} {steps} | {shares} | {found['fid']} | {seconds:.0f} | {apart:.3f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
