"""The second edition's stages in order; ``python -m erasebench.emoji.training.train --edition 2`` runs them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from erasebench.emoji.training.second import corpus, painting, reading, stock, texts
from erasebench.emoji.training.second.loop import together

VARIANT = "sharp"  # of the text encoder: decision 0005
STEPS = {"contrastive": 1250, "autoencoder": 5000, "trunk": 5781, "branch": 1153}
SHARES = {"encoders": 0.27, "trunk": 0.38, "branches": 0.35}  # of a limit in seconds
log = logging.getLogger("erasebench.emoji.training.train")


@dataclass(frozen=True)
class Plan:
    """Where things lie, where they are computed, and a factor on all numbers of steps, for a quick trial."""

    out: Path
    data: Path
    device: torch.device
    scale: float = 1.0
    limit: float = 1e9  # seconds of all trainings together
    wordnet: Path = corpus.WORDNET

    def steps(self, stage: str) -> int:
        return max(4, int(STEPS[stage] * self.scale))

    def done(self, *names: str) -> bool:
        return all((self.out / name / "final.safetensors").exists() for name in names)


def read_and_see(plan: Plan) -> None:
    """Text and picture encoders, and the autoencoder beside them."""
    if plan.done("contrastive", "autoencoder"):
        return
    held = stock.load(plan.out, plan.data, plan.device)
    together(
        [
            reading.trainer(plan.out, held, VARIANT, plan.steps("contrastive")),
            painting.autoencoder_trainer(plan.out, held, plan.steps("autoencoder")),
        ],
        SHARES["encoders"] * plan.limit,
    )


def paint(plan: Plan) -> None:
    """The trunk, then the model and the oracles side by side."""
    names = ["unet", *(f"oracle_{name}" for name in painting.ORACLES)]
    if plan.done("trunk", *names):
        return
    held = stock.load(plan.out, plan.data, plan.device)
    cached = painting.cache(plan.out, held, VARIANT)
    painting.save_std(plan.out, cached)
    if not plan.done("trunk"):
        trunk = painting.trunk_trainer(plan.out, held, cached, plan.steps("trunk"))
        together([trunk], SHARES["trunk"] * plan.limit)
    lost = [name for name in ("", *painting.ORACLES) if not plan.done(f"oracle_{name}" if name else "unet")]
    branches = [painting.branch_trainer(plan.out, held, cached, plan.steps("branch"), name) for name in lost]
    together(branches, SHARES["branches"] * plan.limit)


def write(plan: Plan) -> None:
    from erasebench.emoji.training.second.export import export

    export(plan.out, VARIANT)


STAGES: Mapping[str, Callable[[Plan], None]] = {
    "texts": lambda plan: texts.texts(plan.out, plan.data, plan.wordnet, plan.scale),
    "encoders": read_and_see,
    "painting": paint,
    "export": write,
}


def run(plan: Plan, chosen: list[str]) -> None:
    """The chosen stages in order; what is finished is not done again."""
    if plan.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    for name, stage in STAGES.items():
        if name in chosen:
            log.info("stage %s", name)
            stage(plan)
