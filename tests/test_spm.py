"""SPM against adapters merged into the weights, one prompt and one latent at a time."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call

from erasebench import diffusion
from erasebench.diffusion.adapters import attach, attached
from erasebench.store import workspace
from erasebench.types import Concept, Prompt, joint
from methods import fine_tuning
from methods.adapters import bare, planted
from methods.spm import SPM, Membrane, Transport, adapted

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_training.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
SUN = Concept(name="sun", phrases=("sun",), anchor="moon")
QUICK = {"iterations": 3, "warm_up": 1, "steps": 4, "batch_size": 1, "lr": 1e-2, "seed": 4, "anchors": 1}
FEW = ["mid_block.attentions.0.proj_in", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
       "up_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"]  # fmt: skip


@pytest.fixture(scope="module")
def double_pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


def random_tensors(unet, membrane, seed):
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for path in FEW:
        for leaf, t in membrane.beside(unet.get_submodule(path)).state_dict().items():
            found[f"{path}.{leaf}"] = 0.3 * torch.randn(t.shape, generator=draw, dtype=torch.float64)
    return found


def merged(unet, tensors, strength):
    """Weights W + strength up down, differentiable in what is merged."""
    weights = {}
    for path in {name.rsplit(".", 2)[0] for name in tensors}:
        weight = unet.get_submodule(path).weight
        up, down = (tensors[f"{path}.{leaf}.weight"] for leaf in ("up", "down"))
        weights[f"{path}.weight"] = weight + strength * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    return weights


def test_a_prompt_is_drawn_with_each_adapter_as_strong_as_it_is_like_its_concept(double_pipe):
    membranes = [Membrane(words=(w,), rank=1, alpha=1.0) for w in ("cat", "sun")]
    parts = [random_tensors(double_pipe.unet, m, i) for i, m in enumerate(membranes)]
    pipe = attach(attach(double_pipe, membranes[0], parts[0]), membranes[1], parts[1])
    pipe.guide = Transport(matching="clipcos_tokenuni")
    prompts = [Prompt(id="0", text="a cat", seed=1), Prompt(id="1", text="x", seed=2, guidance_scale=2.0)]
    texts = diffusion.encoding.Texts(pipe)
    found = diffusion.sampling._sample(pipe, prompts, texts, (4, 8, 8), 3, 7.5)
    states = {t: slow.states(double_pipe, t).flatten() for t in ("cat", "sun", "a cat", "x")}
    seen = []
    for i, prompt in enumerate(prompts):
        plain, weights = diffusion.fork(double_pipe), {}
        for word, tensors in zip(("cat", "sun"), parts, strict=True):
            ids, own = ({*pipe.tokenizer(t, add_special_tokens=False).input_ids} for t in (prompt.text, word))
            cosine = torch.cosine_similarity(states[prompt.text], states[word], dim=0)
            strength = max(float(cosine), len(ids & own) / len(own))
            seen.append(strength)
            for name, weight in merged(plain.unet, tensors, strength).items():
                weights[name] = weights.get(name, 0) + weight - plain.unet.get_parameter(name)
        for name, more in weights.items():
            plain.unet.get_parameter(name).data = plain.unet.get_parameter(name) + more
        alone = diffusion.sampling._sample(plain, [prompt], diffusion.encoding.Texts(plain), (4, 8, 8), 3, 7.5)
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-9, atol=1e-9)
    assert seen[0] == 1 and len(set(seen)) == 4
    hooks = [h for m in pipe.unet.modules() for h in m._forward_hooks.values()]
    assert len(hooks) == 6 and all(h.strength is None for h in hooks)


def test_the_loss_and_its_gradient_are_those_of_merged_weights(double_pipe):
    method = SPM(steps=5, batch_size=2, anchors=2, eta=0.7, anchor_scale=3.0, guidance_scale=2.5)
    membrane, unet = Membrane(words=("cat",), rank=1, alpha=1.0), bare(double_pipe)
    _, parameters = planted(unet, membrane, FEW, 0)
    with torch.no_grad():
        for name, tensor in random_tensors(double_pipe.unet, membrane, 3).items():
            parameters[name].copy_(tensor)
    model = method.denoiser(double_pipe)
    loss = method.loss(model, unet, method.draws(("cat",), 7), 7)
    found = torch.autograd.grad(loss, list(parameters.values()))

    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    weights, plain = merged(double_pipe.unet, leaves, 1.0), double_pipe.unet
    drawing = copy.deepcopy(plain)
    with torch.no_grad():
        for name, weight in weights.items():
            drawing.get_parameter(name).copy_(weight)

    def ask(z, t, text):
        return functional_call(plain, weights, (z, torch.tensor([t])), {"encoder_hidden_states": text}).sample

    erase, anchor, cat, empty = [], [], slow.states(double_pipe, "cat"), slow.states(double_pipe, "")
    others = method.surrogates(model.encode(["cat", "cat"]), 7).states
    for row, draw in enumerate(method.draws(("cat",), 7)):
        timesteps = slow.ddim(double_pipe, 5).timesteps.tolist()[: draw.taken]
        z = slow.drawn(double_pipe, drawing, slow.noise_of(draw, double_pipe), cat, timesteps, 5, 2.5)
        t = 999 - draw.taken * 200
        with torch.no_grad():
            e0, ec = slow.ask(plain, z, t, empty), slow.ask(plain, z, t, cat)
        erase.append(((ask(z, t, cat) - (e0 - 0.7 * (ec - e0))) ** 2).mean())
        for other in others[2 * row : 2 * row + 2]:
            with torch.no_grad():
                same = slow.ask(plain, z, t, other[None])
            anchor.append(((ask(z, t, other[None]) - same) ** 2).mean())
    expected = sum(erase) / 2 + 3.0 * sum(anchor) / 4
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0)
    for one, other in zip(found, torch.autograd.grad(expected, list(leaves.values())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


def test_anchors_are_as_long_as_the_concept_and_in_no_direction_of_its_own(double_pipe):
    text = SPM().denoiser(double_pipe).encode(["cat"])
    anchors = SPM(anchors=50).surrogates(text, 0).states
    ratio = anchors.flatten(1).norm(dim=1) / text.states.norm()
    assert 0.8 <= ratio.min() < 0.85 and 1.15 < ratio.max() <= 1.2
    assert torch.cosine_similarity(anchors.flatten(1), text.states.flatten(1)).abs().max() < 0.1


@pytest.mark.slow
def test_killed_and_resumed_in_the_second_concept_ends_in_the_same_bits(tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tuning, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fine_tuning, "SAVE_SHARE", float("inf"))
    monkeypatch.setattr("methods.spm.adapted", lambda unet: FEW)
    method, loss, asked, before = SPM(**QUICK), SPM.loss, [], diffusion.fingerprint(tiny_pipe)
    whole, other = (SPM(**QUICK | {"seed": s}).erase(tiny_pipe, joint([CAT, SUN])) for s in (4, 5))

    def killed(*args):
        asked.append(1)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(SPM, "loss", killed)
    with pytest.raises(KeyboardInterrupt), workspace.use(tmp_path / "work"):
        method.erase(tiny_pipe, joint([CAT, SUN]))
    with workspace.use(tmp_path / "work"):
        resumed = method.erase(tiny_pipe, joint([CAT, SUN]))
    assert len(asked) == 5 + 2
    assert diffusion.fingerprint(resumed) == diffusion.fingerprint(whole) != diffusion.fingerprint(other)
    assert [one.adapter.words for one in attached(resumed)] == [("cat",), ("sun",)]
    assert not diffusion.changed_tensors(resumed, tiny_pipe) and diffusion.fingerprint(tiny_pipe) == before
    ups = [t for one in attached(resumed) for name, t in one.tensors.items() if ".up." in name]
    assert all(up.abs().max() > 0 for up in ups)  # every layer of both is trained
    alone = method.erase(tiny_pipe, CAT)  # the second concept's training does not touch the first's
    assert all(torch.equal(t, attached(whole)[0].tensors[n]) for n, t in attached(alone)[0].tensors.items())


def test_every_linear_and_convolution_layer_of_the_transformers_is_adapted(tiny_pipe):
    names = adapted(tiny_pipe.unet)
    ends = {name.split("attentions.", 1)[1].split(".", 1)[1] for name in names}
    own = {f"transformer_blocks.0.{n}" for a in ("attn1", "attn2") for n in
           (f"{a}.to_q", f"{a}.to_k", f"{a}.to_v", f"{a}.to_out.0")}  # fmt: skip
    assert ends == own | {"proj_in", "proj_out", "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2"}
    assert len(names) == 12 * 7


def test_bad_settings_and_a_second_guide_are_refused(tiny_pipe):
    for bad in ({"rank": 0}, {"alpha": 0}, {"anchors": 0}, {"anchor_scale": -1}, {"cycles": 0}, {"matching": "all"},
                {"layers": "xattn"}, {"warm_up": -1}):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            SPM(**bad)
    guided = diffusion.fork(tiny_pipe)
    guided.guide = Transport(matching="clipcos")
    with pytest.raises(ValueError, match="pipeline without a guide"):
        SPM(**QUICK).erase(guided, CAT)


def test_with_its_transport_it_is_a_guard_and_no_second_one_comes_on_top():
    from erasebench.composition import Composed
    from methods.negative_prompt import NegativePrompt

    assert SPM().guard and not SPM(matching="none").guard
    with pytest.raises(ValueError, match="got spm before negative_prompt"):
        Composed(stages={"spm": SPM(), "negative_prompt": NegativePrompt()})
    Composed(stages={"spm": SPM(matching="none"), "negative_prompt": NegativePrompt()})
