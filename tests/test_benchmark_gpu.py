"""The GPU benchmark runs small on any machine, and what it draws with is what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import gpu
from erasebench import diffusion
from erasebench.types import Prompt


@pytest.mark.slow
def test_it_runs_small_and_every_row_is_a_measurement(tmp_path, capsys):
    rows = gpu.main(["--small", "--device", "cpu", "--out", str(tmp_path / "rows.json")])
    assert [row.what for row in rows] == [
        "draw: diffusers", *(f"draw: {name}" for name in gpu.SWITCHES), "ESD-x", "UnlearnDiffAtk",
    ]  # fmt: skip
    assert all(row.value > 0 and row.memory > 0 for row in rows[:-1])  # the last is a difference of two times
    found = json.loads((tmp_path / "rows.json").read_text())
    assert [row["what"] for row in found["rows"]] == [row.what for row in rows] and found["device"]
    assert "images/s" in capsys.readouterr().out


@pytest.mark.slow
def test_both_sides_draw_the_same_images():
    pipe = gpu.model(gpu.SMALL)
    prompt = Prompt(id="0", text="a church", seed=3)
    ((_, ours, _),) = diffusion.generate(pipe, [prompt], steps=2, guidance_scale=7.5)
    generator = torch.Generator().manual_seed(3)
    theirs = pipe("a church", num_inference_steps=2, guidance_scale=7.5, generator=generator).images[0]
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_the_full_shape_is_stable_diffusion_1_4_s():
    with torch.device("meta"):
        pipe = gpu.model(gpu.FULL)
    sizes = {name: sum(p.numel() for p in getattr(pipe, name).parameters()) for name in ("unet", "vae")}
    assert sizes == {"unet": 859_520_964, "vae": 83_653_863}
