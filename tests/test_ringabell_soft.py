"""Ring-A-Bell in embedding space: prompt plus eta times the concept vector, nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.pairs import TextPairs
from attacks.ringabell_soft import RingABellSoft
from erasebench import diffusion
from erasebench.types import Concept, Prompt

CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
PAIRS = TextPairs(pairs=(("a {} on red", "red"), ("a {}", "a thing")))
PROMPTS = [Prompt(id="0", text="a cat", seed=3, guidance_scale=2.0), Prompt(id="1", text="cat on blue", seed=4)]


def test_embeds_are_prompt_plus_eta_times_vector(tiny_pipe):
    found = RingABellSoft(vector=PAIRS, eta=0.9).attack(None, tiny_pipe, PROMPTS, CAT, None)
    for source, prompt in zip(PROMPTS, found, strict=True):
        expected = diffusion.encode(tiny_pipe, [source.text])[0].double() + 0.9 * PAIRS.vector(tiny_pipe, CAT)
        assert prompt.embeds.dtype == np.float32 and prompt.embeds.shape == (77, 32)
        assert np.allclose(prompt.embeds, expected.numpy(), atol=1e-6)
        assert (prompt.id, prompt.group, prompt.source_id) == (f"{source.id}-ringabell_soft", "attack", source.id)
        assert (prompt.text, prompt.seed, prompt.guidance_scale) == (source.text, source.seed, source.guidance_scale)
        assert prompt.concept == "cat" and prompt.digest() != source.digest()


def test_eta_zero_is_the_prompt_itself(tiny_pipe):
    found = RingABellSoft(vector=PAIRS, eta=0.0).attack(None, tiny_pipe, PROMPTS, CAT, None)
    assert np.array_equal(found[0].embeds, diffusion.encode(tiny_pipe, ["a cat", "cat on blue"])[0].numpy())


def test_the_erased_model_is_not_asked_and_no_prompt_gives_none(tiny_pipe, make_pipe):
    attack = RingABellSoft(vector=PAIRS)
    one, other = (attack.attack(pipe, tiny_pipe, PROMPTS, CAT, None) for pipe in (None, make_pipe(seed=1)))
    assert all(np.array_equal(a.embeds, b.embeds) for a, b in zip(one, other, strict=True))
    assert attack.attack(None, None, [], CAT, None) == []
    assert (RingABellSoft.access, RingABellSoft.strength) == ("text_encoder", "embedding")


@pytest.mark.parametrize(
    ("changes", "message"), [({"eta": float("nan")}, "eta must be"), ({"batch_size": 0}, "batch_size")]
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RingABellSoft(vector=PAIRS, **changes)
