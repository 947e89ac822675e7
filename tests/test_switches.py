"""Switches of memory and layout: what they do to the pipeline, and that images are what they should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from erasebench import diffusion
from erasebench.cell import drawing
from erasebench.diffusion.offloading import offloaded
from erasebench.types import Concept, Prompt
from methods.esd import ESD
from tests.small import small_run

PROMPTS = [Prompt(id=str(i), text="a cat", seed=i) for i in range(2)]


@pytest.fixture(scope="module")
def folder(tiny_pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("switches") / "pipe"
    tiny_pipe.save_pretrained(path)
    return path


def images(pipe, size):
    drawn = diffusion.generate(pipe, PROMPTS, steps=2, height=size, width=size)
    return np.stack([np.asarray(image, dtype=int) for _, image, _ in drawn])


def test_channels_last_changes_layout_and_rounding_alone(folder):
    plain, last = diffusion.load(folder), diffusion.load(folder, channels_last=True)
    weight = last.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert diffusion.fingerprint(plain) == diffusion.fingerprint(last)
    assert np.abs(images(plain, 64) - images(last, 64)).max() <= 1
    assert diffusion.changed_tensors(diffusion.fork(last), last) == {} == diffusion.changed_tensors(last, plain)


def test_tiles_are_decoded_alone_where_an_image_is_larger_than_the_vae_s_own(folder, monkeypatch):
    tiled = diffusion.load(folder, vae_tiling=True)
    plain, sizes = diffusion.load(folder), []
    assert tiled.vae.use_tiling and diffusion.fork(tiled).vae.use_tiling and not plain.vae.use_tiling
    whole = tiled.vae.decoder.forward

    def seen(z, *rest, **more):
        sizes.append(z.shape[-1])
        return whole(z, *rest, **more)

    monkeypatch.setattr(tiled.vae.decoder, "forward", seen)
    found = images(tiled, 128)
    assert max(sizes) <= 8  # latents of the 64 pixels the tiny VAE says it was trained on; 128 pixels have 16
    assert found.shape == (2, 128, 128, 3) and np.abs(found - images(plain, 128)).mean() < 16
    sizes.clear()
    assert np.array_equal(images(tiled, 64), images(plain, 64))


def test_tiling_is_part_of_what_images_are_called_by_and_the_layout_is_not():
    own = {"steps": 5, "guidance_scale": 3.0, "height": None, "width": None, "dtype": "float32"}
    assert drawing({**own, "vae_tiling": None, "channels_last": True}) == drawing({**own, "vae_tiling": False}) == own
    assert drawing({**own, "vae_tiling": True}) == {**own, "vae_tiling": True}


@pytest.mark.slow
def test_a_run_takes_them(tmp_path):
    first = small_run(tmp_path, "method=none")
    last = small_run(tmp_path, "method=none", "model.channels_last=true")
    assert last.folder == first.folder and last.cached
    tiled = small_run(tmp_path, "method=none", "model.vae_tiling=true")
    assert tiled.folder != first.folder and "vae_tiling" in tiled.folder.parent.name
    with pytest.raises(ValueError, match=r"model.vae_tiling must be true or false"):
        small_run(tmp_path, "method=none", "model.vae_tiling=maybe")


def test_parts_wait_elsewhere_while_drawing_and_the_pipeline_and_its_forks_have_no_hooks(tiny_pipe, monkeypatch):
    """The hooks of a GPU, with the CPU in its place; accelerate's for single layers do not work there."""
    marked, kind = diffusion.fork(tiny_pipe), "model"
    marked.offload = (kind, "cpu")
    before = diffusion.fingerprint(marked)
    assert np.array_equal(images(marked, 64), images(tiny_pipe, 64)) and diffusion.fingerprint(marked) == before
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"
    weight = tiny_pipe.unet.get_parameter(name) + 1.0
    erased, plain = (diffusion.apply_tensors(pipe, {f"unet.{name}": weight}) for pipe in (marked, tiny_pipe))
    assert erased.offload == (kind, "cpu") and np.array_equal(images(erased, 64), images(plain, 64))
    assert not np.array_equal(images(erased, 64), images(tiny_pipe, 64))
    assert not any(hasattr(m, "_hf_hook") for pipe in (marked, erased) for m in pipe.unet.modules())
    with pytest.raises(ValueError, match=r"model\.offload must be null for a method that asks the UNet itself"):
        ESD(iterations=1).erase(marked, Concept(name="cat", phrases=("cat",)))
    asked = []
    monkeypatch.setattr(
        type(marked), "enable_sequential_cpu_offload", lambda self, device: asked.append((self, device))
    )
    marked.offload = ("sequential", "cuda")
    own = offloaded(marked)
    assert asked == [(own, "cuda")] and own is not marked and offloaded(tiny_pipe) is tiny_pipe


def test_offloading_without_a_gpu_is_refused_before_a_weight_is_read(folder):
    with pytest.raises(ValueError, match=r"model\.offload must be null without a GPU; got model"):
        diffusion.load(folder, device="cpu", offload="model")
    with pytest.raises(ValueError, match=r"model\.offload must be one of model, sequential; got 'disk'"):
        diffusion.load(folder, device="cpu", offload="disk")
