"""Degeneration-tuning against itself written out one latent at a time, and its shuffles cell by cell."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from erasebench.diffusion import changed_tensors
from erasebench.types import Concept, joint
from methods.degeneration_tuning import DegenerationTuning
from methods.fine_tuning import layer_names, student

slow = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_images.py"))))
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
SUN = Concept(name="sun", phrases=("sun",), anchor="moon")
QUICK = {"iterations": 4, "steps": 2, "batch_size": 2, "lr": 1e-3, "seed": 4, "images": 3, "templates": ("a {}",),
         "layers": "xattn", "grid": 4}  # fmt: skip


def cells(image, grid):
    pixels = np.asarray(image)
    size = pixels.shape[0] // grid
    return [pixels[y * size :, x * size :][:size, :size].tobytes() for y in range(grid) for x in range(grid)]


def test_a_scrambled_picture_has_the_same_cells_in_another_order():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image, method = Image.fromarray(pixels), DegenerationTuning(**QUICK)
    one, again, other = (method.scrambled(image, number) for number in (0, 0, 1))
    assert sorted(cells(one, 4)) == sorted(cells(image, 4)) and cells(one, 4) != cells(image, 4)
    assert one.tobytes() == again.tobytes() != other.tobytes()
    assert replace(method, seed=5).scrambled(image, 0).tobytes() != one.tobytes()
    assert image.tobytes() == pixels.tobytes()  # the picture in the store is left alone


def test_the_loss_and_its_gradient_are_the_literal_ones(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    method = DegenerationTuning(**(QUICK | {"batch_size": 3, "alpha": 0.3, "remain": ("car", "tree")}))
    model, (unet, weights) = method.denoiser(pipe), student(pipe, "xattn")
    plain = method.pictures(pipe, [("cat", "cat")])
    broken, whole = method.pictures(pipe, [("cat", "cat")], altered=method.scrambled), method.remaining(pipe, CAT)
    assert [p.text for p in broken] == ["a cat"] * 3 and {p.text for p in whole} == {"a car", "a tree"}
    assert not any(torch.equal(a.latent, b.latent) for a, b in zip(plain, broken, strict=True))

    def denoised(few):
        rows = slow.rows(few)
        return sum(((slow.asked(pipe, unet, z, t, p.text) - e) ** 2).mean() for p, z, e, t in rows) / len(rows)

    total = denoised(method.noised(model, broken, 5)) + 0.3 * denoised(method.noised(model, whole, 5, "remain"))
    slow.same_gradients(method.loss(model, unet, broken, whole, 5), total, weights)


@pytest.mark.slow
def test_only_its_layers_move_and_seed_and_kill_and_several_concepts(tiny_pipe, tmp_path, monkeypatch):
    method = DegenerationTuning(**QUICK)
    erased = slow.same_seed_same_bits(method, replace(method, seed=5), tiny_pipe, joint([CAT, SUN]))
    names = {f"unet.{name}" for name in layer_names(tiny_pipe.unet, "xattn")}
    assert changed_tensors(erased, tiny_pipe).keys() == names
    slow.same_bits_when_killed(method, tiny_pipe, CAT, tmp_path, monkeypatch)


def test_bad_settings_are_refused_at_once(tiny_pipe):
    for name, value in (("grid", 1), ("alpha", -1.0), ("remain", ())):
        with pytest.raises(ValueError, match=name):
            DegenerationTuning(**{name: value})
    with pytest.raises(ValueError, match="concept 'moon' must have an anchor"):
        DegenerationTuning().check(Concept(name="moon", phrases=("moon",)), {})
    with pytest.raises(ValueError, match="grid must divide the sides of a picture, 64 x 64; got 7"):
        DegenerationTuning(**(QUICK | {"grid": 7})).erase(tiny_pipe, CAT)
