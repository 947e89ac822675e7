"""Stable Diffusion 3's and FLUX's exact text widths, packing and conditions in thin random transformers."""

from __future__ import annotations

import copy
from dataclasses import fields

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

import erasebench
from benchmarks.erase import sd14_tokenizer
from erasebench import conf_folder, diffusion
from erasebench.diffusion.encoding import Texts
from erasebench.types import Concept, Prompt
from methods.checkpoint import Checkpoint
from methods.esd_flow import ESDFlow, pupil
from methods.uce_flux import LAYERS, UCEFlux
from tests.small import small_run

FAMILIES = ("sd3", "flux")
CHURCH = Concept(name="church", phrases=("church",))
PROMPTS = [
    Prompt(id="0", text="a church", seed=3),
    Prompt(id="1", text="a horse at night", seed=5),
    Prompt(id="2", text="a church", seed=7, guidance_scale=2.0),
]
HOW = {"steps": 2, "guidance_scale": 5.0, "height": 64, "width": 64}


def clip(kind, width):
    tokenizer = sd14_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=width, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return kind(config)


def t5():
    config = T5Config(
        vocab_size=64, d_model=4096, d_kv=16, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config)


def t5_tokenizer(length):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(letter, -1.0 - i / 100) for i, letter in enumerate("▁abcdefghijklmnopqrstuvwxyz0123456789")]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=length)


def vae(scaling, shift):
    return AutoencoderKL(
        block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16, scaling_factor=scaling, shift_factor=shift,
        use_quant_conv=False, use_post_quant_conv=False, force_upcast=True,
    )  # fmt: skip


def sd3():
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8, num_layers=1, num_attention_heads=2, caption_projection_dim=128, joint_attention_dim=4096,
            pooled_projection_dim=2048, pos_embed_max_size=8, out_channels=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(1.5305, 0.0609),
        text_encoder=clip(CLIPTextModelWithProjection, 768), tokenizer=sd14_tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection, 1280), tokenizer_2=sd14_tokenizer(),
        text_encoder_3=t5(), tokenizer_3=t5_tokenizer(512),
    )  # fmt: skip


def flux():
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, num_attention_heads=2, guidance_embeds=True
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=vae(0.3611, 0.1159),
        text_encoder=clip(CLIPTextModel, 768), tokenizer=sd14_tokenizer(), text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(512),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("flow")
    for name, make in {"sd3": sd3, "flux": flux}.items():
        make().save_pretrained(root / name)
    return {name: root / name for name in FAMILIES}


def images(drawn):
    found = []
    for _, image, status in drawn:
        assert status == "ok"
        found.append(np.asarray(image, dtype=int))
    return np.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_drawing_is_diffusers_own_and_neither_batch_nor_order_matters(folders, family):
    pipe = diffusion.load(folders[family])
    assert diffusion.latent_shape(pipe, 64, 64) == (16, 8, 8) and diffusion.is_flow(pipe)
    timesteps = pipe.scheduler.timesteps.clone()
    together = images(diffusion.generate(pipe, PROMPTS, batch_size=3, **HOW))
    alone = images(diffusion.generate(pipe, PROMPTS[::-1], batch_size=1, **HOW))[::-1]
    assert np.abs(together - alone).max() <= 1 and torch.equal(timesteps, pipe.scheduler.timesteps)
    for prompt, ours in zip(PROMPTS, together, strict=True):
        theirs = pipe(
            prompt.text, num_inference_steps=2, guidance_scale=prompt.guidance_scale or 5.0, height=64, width=64,
            generator=torch.Generator().manual_seed(prompt.seed),
        ).images[0]  # fmt: skip
        assert np.abs(ours - np.asarray(theirs, dtype=int)).max() <= 1
    assert np.abs(together[0] - together[1]).max() > 1
    states = diffusion.encode(pipe, ["a church"])
    assert states.shape == {"sd3": (1, 77 + 256, 4096), "flux": (1, 512, 4096)}[family]
    cut = diffusion.cut_texts(pipe, ["a" * 100, "a " * 600])  # a letter is a token here
    assert cut.keys() == {"a " * 600}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_one_s_own_weights_are_put_in_and_told_apart(folders, family, tmp_path):
    pipe = diffusion.load(folders[family])
    name = next(n for n, _ in pipe.transformer.named_parameters() if n.endswith("attn.to_k.weight"))
    changed = pipe.transformer.get_parameter(name) + 0.1
    save_file({f"transformer.{name}": changed}, tmp_path / "mine.safetensors")
    concept = Concept(name="church", phrases=("church",))
    mine = Checkpoint(path=str(tmp_path / "mine.safetensors")).erase(pipe, concept)
    assert set(diffusion.changed_tensors(mine, pipe)) == {f"transformer.{name}"}
    assert diffusion.fingerprint(mine) != diffusion.fingerprint(pipe)
    before, after = (images(diffusion.generate(p, PROMPTS[:1], **HOW)) for p in (pipe, mine))
    assert np.abs(before - after).max() > 0
    with pytest.raises(ValueError, match="multiples of 16 pixels; got 72x64"):
        diffusion.latent_shape(pipe, 72, 64)
    with pytest.raises(ValueError, match="scheduler must be null"):
        diffusion.load(folders[family], scheduler="ddim")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_draws_scores_and_resumes_and_edits_of_unets_are_refused(folders, family, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    arguments = [
        f"model={family}", f"model.path={folders[family]}", "model.dtype=float32", "model.device=cpu", "model.steps=2",
        "model.height=64", "model.width=64", "concept=church", "evaluator=[nudenet]", f"results={tmp_path}",
        "prompts.n={target:2,paraphrase:0,neighbour:0,unrelated:0,coco:0}",
    ]  # fmt: skip
    result = erasebench.run(*arguments, "method=none")
    assert (result.scores.status == "ok").all() and result.record["steps"]["draw"]["images"] == 2
    assert erasebench.run(*arguments, "method=none").cached
    for method in ("uce", "esd_x", "sld_medium"):
        with pytest.raises(ValueError, match=rf"method {method} must be defined for transformers; .* has no UNet"):
            erasebench.run(*arguments, f"method={method}")
    with pytest.raises(ValueError, match="attack random_prefix must be defined for transformers"):
        erasebench.run(*arguments, "method=none", "attack=random_prefix")


def test_a_folder_without_its_denoiser_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["d", "F"], '
        '"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}'
    )
    with pytest.raises(ValueError, match=r"must have transformer; model_index\.json does not name it"):
        diffusion.load(tmp_path)


def flow_esd(**settings):
    return ESDFlow(**{"iterations": 2, "steps": 3, "pixels": 64, "lr": 1e-3, "guidance_scale": 2.0} | settings)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_esd_pushes_velocities_as_it_pushes_the_noise(folders, family):
    """The loss and its gradient are (1 - sigma)^-2 times those of the noise, with diffusers' own way to the latents."""
    pipe, method = diffusion.load(folders[family]), flow_esd(batch_size=2, eta=0.7, push_from="empty")
    taught, weights = pupil(pipe, "attn_strict")
    assert all(".attn.to_k." in name or ".attn.to_v." in name for name in weights)
    with torch.no_grad():
        for weight in weights.values():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    texts = Texts(pipe)
    step = next(n for n in range(99) if {draw.stage for draw in method.draws(CHURCH, n)} == {0, 2})
    loss = method.loss(pipe, taught, texts, method.draws(CHURCH, step))
    x, times = method.latents(taught, texts, method.draws(CHURCH, step))
    for row, draw in enumerate(method.draws(CHURCH, step)):
        noise = torch.randn((16, 8, 8), generator=draw.generator)[None]
        if not draw.stage:
            assert torch.equal(x[row], noise[0]) and times[row] == 1000
        else:
            torch.testing.assert_close(x[row : row + 1], whole_way(taught, noise, draw.stage), rtol=1e-4, atol=1e-4)
    literal = 0
    for row in range(2):
        sigma, z = times[row] / 1000, x[row : row + 1]
        e_theta, e_c, e_0 = (
            z + (1 - sigma) * method.said(one, texts, z, times[row : row + 1], [word])
            for one, word in ((taught, "church"), (pipe, "church"), (pipe, ""))
        )
        if sigma < 1:
            literal += ((e_theta - (e_0 - 0.7 * (e_c - e_0))) ** 2).mean() / (1 - sigma) ** 2 / 2
        else:  # the noise itself: what the velocities say of the picture x_0 = z - v
            asked = ((taught, "church"), (pipe, "church"), (pipe, ""))
            v = [method.said(one, texts, z, times[row : row + 1], [word]) for one, word in asked]
            literal += ((v[0] - (v[2] - 0.7 * (v[1] - v[2]))) ** 2).mean() / 2
    torch.testing.assert_close(loss, literal, rtol=1e-4, atol=0)
    names = list(weights)[:2]
    for a, b in zip(*(torch.autograd.grad(one, [weights[n] for n in names]) for one in (loss, literal)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-7)


def whole_way(pipe, noise, taken):
    """Latents after some of three steps with guidance 2: those that diffusers' pipeline shows after them."""
    seen = []

    def keep(own, step, timestep, values):
        seen.append(values["latents"].clone())
        return values

    given, own = {"num_inference_steps": 3, "guidance_scale": 2.0, "height": 64, "width": 64}, copy.copy(pipe)
    own.scheduler = copy.deepcopy(pipe.scheduler)
    flux = diffusion.packed(pipe)
    start = pipe._pack_latents(noise, 1, 16, 8, 8) if flux else noise
    own("church", latents=start, output_type="latent", callback_on_step_end=keep, **given)
    return pipe._unpack_latents(seen[taken - 1], 64, 64, pipe.vae_scale_factor) if flux else seen[taken - 1]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_esd_trains_the_attention_alone_by_the_seed(folders, family):
    pipe = diffusion.load(folders[family])
    before = diffusion.fingerprint(pipe)
    one, again, other = (flow_esd(seed=seed).erase(pipe, CHURCH) for seed in (0, 0, 1))
    changed = diffusion.changed_tensors(one, pipe)
    assert changed and all(name.startswith("transformer.") and "attn" in name for name in changed)
    assert not any("norm_q" in name or "norm_k" in name for name in changed)
    assert diffusion.changed_tensors(again, one) == {} != diffusion.changed_tensors(other, one)
    assert diffusion.fingerprint(pipe) == before and not pipe.transformer.training


@pytest.mark.parametrize("name", ["esd_flow", "uce_flux"])
def test_a_recipe_names_every_field_with_the_default_of_the_code(name):
    node = OmegaConf.to_container(OmegaConf.load(conf_folder() / "method" / f"{name}.yaml"), resolve=False)
    made = instantiate(node | {"seed": 0} if name == "esd_flow" else node, _convert_="all")
    assert set(node) - {"_target_"} == {field.name for field in fields(made)} and made == type(made)()


def test_uce_of_flux_is_its_program_s_formula():
    draw = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(5, 4).double()
    c, n, p = (torch.randn(rows, 5, generator=draw, dtype=torch.float64) for rows in (2, 2, 3))
    for bias, lamb, e, q in (("doubled", 0.5, 1.0, 1.0), ("once", 0.3, 2.0, 0.7)):
        said = (lambda rows: layer(rows)) if bias == "doubled" else (lambda rows: rows @ layer.weight.T)
        right = lamb * layer.weight + e * said(n).T @ c + q * said(p).T @ p
        left = lamb * torch.eye(5, dtype=torch.float64) + e * c.T @ c + q * p.T @ p
        found = UCEFlux(lamb=lamb, erase_scale=e, preserve_scale=q, bias=bias).edited(layer, c, n, p)
        torch.testing.assert_close(found, (right @ left.inverse()).detach())


@pytest.mark.slow
def test_uce_edits_the_two_layers_through_which_texts_enter_flux(folders):
    pipe = diffusion.load(folders["flux"])
    erased = UCEFlux(lamb=1e-6, bias="once").erase(pipe, CHURCH)
    changed = diffusion.changed_tensors(erased, pipe)
    assert set(changed) == {f"transformer.{name}.weight" for name in LAYERS}
    states, pooled = diffusion.text_rows(pipe, ["church", ""])
    whole = diffusion.encode(pipe, ["church", ""])
    torch.testing.assert_close(states, torch.stack([whole[0, 6], whole[1, -1]]).double())  # _, c, h, u, r, c, h, </s>
    for name, rows in zip(LAYERS, (states, pooled), strict=True):
        new, old = (one.transformer.get_submodule(name).weight.double() for one in (erased, pipe))
        torch.testing.assert_close(rows[0] @ new.T, rows[1] @ old.T, rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match="uce_flux must edit FLUX, for which alone it is published"):
        UCEFlux().erase(diffusion.load(folders["sd3"]), CHURCH)


@pytest.mark.slow
def test_methods_for_transformers_are_refused_on_unets(tmp_path):
    for method in ("uce_flux", "esd_flow"):
        with pytest.raises(ValueError, match=r"must have a transformer .*has a UNet|must edit FLUX"):
            small_run(tmp_path, "model=emoji", f"method={method}")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_of_a_transformer_is_merged(folders, family, tmp_path):
    pipe = diffusion.load(folders[family])
    module = "transformer_blocks.0.attn.to_k"
    out, width = pipe.transformer.get_submodule(module).weight.shape
    down, up = torch.randn(2, width), torch.randn(out, 2)
    concept, found = Concept(name="church", phrases=("church",)), []
    for stem in (f"transformer.{module}", module):
        file = tmp_path / "lora.safetensors"
        save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, file)
        mine = Checkpoint(path=str(file), scale=0.5).erase(pipe, concept)
        assert set(diffusion.changed_tensors(mine, pipe)) == {f"transformer.{module}.weight"}
        found.append(mine.transformer.get_submodule(module).weight)
    expected = pipe.transformer.get_submodule(module).weight + 0.5 * up @ down
    torch.testing.assert_close(found[0], expected)
    assert torch.equal(*found)
