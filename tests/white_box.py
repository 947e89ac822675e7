"""What the tests of white-box attacks share: a judge that is a function of the image, and an erased tiny pipeline."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erasebench import diffusion
from erasebench.protocols import Attack
from erasebench.report.checks import search_flags
from erasebench.store import workspace
from erasebench.types import Concept, Prompt, Verdict

CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
PROMPTS = [
    Prompt(id="0", text="a cat", seed=3, guidance_scale=2.0, concept="cat"),
    Prompt(id="1", text="cat on blue", seed=4, concept="cat"),
    Prompt(id="2", text="a red cat!", seed=5, concept="cat"),
]
SAMPLER = {"steps": 2, "guidance_scale": 3.0, "batch_size": 3}


@dataclass
class Brightness:
    """Sees the concept in an image brighter than a threshold; counts, and may be killed at, its calls."""

    threshold: float = 2.0
    killed_at: int | None = None
    calls: list[int] = field(default_factory=list)
    name: str = "brightness"

    def check(self, concepts: Collection[str]) -> None:
        pass

    def __call__(self, images: Sequence[Image.Image], concepts: Sequence[str]) -> list[Verdict]:
        if len(self.calls) == self.killed_at:
            raise KeyboardInterrupt
        assert set(concepts) <= {"cat"}
        self.calls.append(len(images))
        scores = [float(np.asarray(image).mean() / 255) for image in images]
        return [Verdict(present=s > self.threshold, score=s, label="cat") for s in scores]


def blinded(pipe, seed: int = 1):
    """A fork whose keys and values are multiplied by one random matrix near the identity, as an erasure would."""
    fork = diffusion.fork(pipe)
    layers = diffusion.cross_attention_projections(fork).values()
    width = next(iter(layers)).in_features
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = torch.eye(width, dtype=torch.float64) + 0.3 * noise / width**0.5
    for layer in layers:
        weight = (layer.weight.double() @ matrix).to(layer.weight)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return fork


def outcome(prompts: Sequence[Prompt]) -> list[tuple]:
    """All that a search found, without how long it took and with scores to ten digits."""
    rows = []
    for p in prompts:
        info = {k: v for k, v in p.info.items() if k not in ("seconds", "curve", "loss")}
        rows.append((p.id, p.text, p.seed, p.guidance_scale, p.group, p.source_id, info))
    return rows


def curves(prompts: Sequence[Prompt]) -> list[list[float]]:
    return [list(p.info["curve"]) for p in prompts]


def check_the_whole_protocol(attack: Attack, pipe, erased, tmp_path: Path) -> None:
    """Batches, resuming, early stop, budget and passing through, for any attack that searches in rounds."""
    from dataclasses import replace

    whole = attack.attack(erased, pipe, PROMPTS, CAT, Brightness())
    rounds = len(whole[0].info["curve"]) - 1
    assert rounds == attack.rounds
    for found, prompt in zip(whole, PROMPTS, strict=True):
        assert (found.seed, found.guidance_scale) == (prompt.seed, prompt.guidance_scale)
        assert (found.group, found.source_id, found.concept) == ("attack", prompt.id, "cat")
        assert found.id == f"{prompt.id}-{attack.name}"
        info = found.info
        assert not info["success"] and not info["pre"] and info["queries"] == rounds + 1 == len(info["present"])
        assert info["gradient"] == "ok" and info["sees_guide"] and not info["truncated"]
        assert info["backward"] == rounds * getattr(attack, "query_every", attack.iterations)
        each = 2 * SAMPLER["steps"] if found.guidance_scale != 1 else SAMPLER["steps"]
        assert info["forward"] == (1 + attack.name.startswith("p4d")) * info["backward"] + (rounds + 2) * each

    assert search_flags(found.info for found in whole) == []

    alone = [attack.attack(erased, pipe, [p], CAT, Brightness())[0] for p in PROMPTS]
    pairs = replace(attack, batch_size=2).attack(erased, pipe, PROMPTS[::-1], CAT, Brightness())[::-1]
    for other in (alone, pairs):
        assert outcome(other) == outcome(whole)
        np.testing.assert_allclose(curves(other), curves(whole), atol=2e-3)  # pixels are rounded to 8 bits

    kept = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt), workspace.use(kept):
        attack.attack(erased, pipe, PROMPTS, CAT, Brightness(killed_at=rounds))
    judge = Brightness()
    with workspace.use(kept):
        resumed = attack.attack(erased, pipe, PROMPTS, CAT, judge)
    assert outcome(resumed) == outcome(whole) and curves(resumed) == curves(whole) and len(judge.calls) == 1

    capped = replace(attack, budget=2).attack(erased, pipe, PROMPTS, CAT, Brightness())
    assert curves(capped) == [c[:2] for c in curves(whole)]
    untouched = replace(attack, budget=1).attack(erased, pipe, PROMPTS, CAT, Brightness())
    assert [p.text for p in untouched] == [p.text for p in PROMPTS]
    assert [p.info["gradient"] for p in untouched] == ["none"] * 3 and curves(untouched) == [
        c[:1] for c in curves(whole)
    ]

    threshold = sorted(c[0] for c in curves(whole))[-1] - 1e-6  # one plain image is brighter than this
    stopped = replace(attack, batch_size=2).attack(erased, pipe, PROMPTS, CAT, Brightness(threshold))
    for some, all_, prompt in zip(stopped, curves(whole), PROMPTS, strict=True):
        first = next((i for i, s in enumerate(all_) if s > threshold), rounds)
        assert some.info["queries"] == first + 1 and some.info["success"] == (all_[first] > threshold)
        assert some.info["pre"] == (first == 0) and (first or some.text == prompt.text)
    assert sum(p.info["pre"] for p in stopped) == 1
