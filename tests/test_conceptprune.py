"""ConceptPrune against its scores written out, one drawing, one step and one weight at a time."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from erasebench import diffusion
from erasebench.types import Concept, joint
from methods.conceptprune import ConceptPrune
from methods.fine_tuning import generator

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_training.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
SUN = Concept(name="sun", phrases=("sun",), anchor="moon")
QUICK = {"steps": 6, "until": 2, "share": 0.05, "templates": ("a {}", "the {} here"), "images": 2}


@torch.no_grad()
def seen(pipe, word, layer, method):
    """step -> rows that went into a layer, over all drawings; both halves of the guidance, one call each."""
    module, found = pipe.unet.get_submodule(layer), [[] for _ in range(method.until)]
    for i, template in enumerate(method.templates):
        for copy in range(method.images):
            scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
            scheduler.set_timesteps(method.steps)
            x = torch.randn((4, 8, 8), generator=generator(method.seed, i, copy))[None].double()
            for k, t in enumerate(scheduler.timesteps[: method.until]):
                handle = module.register_forward_pre_hook(lambda m, a, k=k: found[k].append(a[0][0].numpy()))
                e0, e1 = (slow.ask(pipe.unet, x, t, slow.states(pipe, s)) for s in ("", template.format(word)))
                handle.remove()
                x = scheduler.step(e0 + method.guidance_scale * (e1 - e0), t, x).prev_sample
    return [np.concatenate(rows) for rows in found]


def test_what_is_pruned_is_what_the_scores_say(make_pipe):
    pipe, method = make_pipe(dtype=torch.float64), ConceptPrune(**QUICK)
    erased = method.erase(diffusion.fork(pipe), CAT)
    for layer in ("down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2",
                  "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2"):  # fmt: skip
        weight = pipe.unet.get_submodule(layer).weight.numpy()
        expected, many = weight.copy(), int(0.05 * weight.shape[1])
        fork = diffusion.fork(pipe)
        for target, base in zip(seen(fork, "cat", layer, method), seen(fork, "dog", layer, method), strict=True):
            for o in range(len(weight)):
                scores = []
                for rows in (target, base):
                    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
                    scores.append(np.abs(weight[o]) * np.linalg.norm(unit, axis=0))
                for j in sorted(range(weight.shape[1]), key=lambda j: -scores[0][j])[:many]:
                    if scores[0][j] > scores[1][j]:
                        expected[o, j] = 0
        assert 0 < (expected == 0).sum() < weight.size / 5
        np.testing.assert_array_equal(erased.unet.get_submodule(layer).weight.numpy(), expected)


def test_several_concepts_are_what_is_pruned_for_each_and_no_hook_remains(tiny_pipe):
    method, before = ConceptPrune(**QUICK), diffusion.fingerprint(tiny_pipe)
    one, other, both = (method.erase(tiny_pipe, c) for c in (CAT, SUN, joint([CAT, SUN])))
    assert diffusion.fingerprint(tiny_pipe) == before
    for name, weight in diffusion.changed_tensors(both, tiny_pipe).items():
        assert name.endswith(".ff.net.2.weight")
        path = name.removeprefix("unet.").removesuffix(".weight")
        zeros = [p.unet.get_submodule(path).weight == 0 for p in (one, other)]
        assert torch.equal(weight == 0, zeros[0] | zeros[1])
    assert not any(m._forward_pre_hooks for m in both.unet.modules())
    assert not diffusion.changed_tensors(method.erase(tiny_pipe, CAT), one)  # same seed, same weights


def test_votes_ask_for_more_steps(tiny_pipe):
    def pruned(votes):
        changed = diffusion.changed_tensors(ConceptPrune(**QUICK, votes=votes).erase(tiny_pipe, CAT), tiny_pipe)
        return sum(int((weight == 0).sum()) for weight in changed.values())

    assert pruned(0.5) < pruned(0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 0}, "share must be"), ({"share": 1.0}, "share must be"), ({"until": 0}, "until must be"),
        ({"votes": 1.0}, "votes must be"), ({"templates": ["a cat"]}, "templates must each hold"),
        ({"phrases": "some"}, "phrases must be"), ({"base": ""}, "base must"), ({"until": 60}, "until must be below"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        ConceptPrune(**changes)


def test_a_concept_without_a_base_and_a_model_without_layers_are_refused():
    with pytest.raises(ValueError, match="must have an anchor to compare with"):
        ConceptPrune().check(Concept(name="x", phrases=("x",)), {})
    with pytest.raises(ValueError, match="feed-forward"):
        ConceptPrune().check(CAT, {"unet.conv_in.weight": (1,)})
    ConceptPrune(base="thing").check(Concept(name="x", phrases=("x",)), {})
