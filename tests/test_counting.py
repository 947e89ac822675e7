"""What a step costs is counted by what went through the networks."""

import torch

from erasebench import diffusion
from erasebench.diffusion.counting import counting
from erasebench.types import Prompt


def test_guided_sampling_counts_both_halves_of_every_step(tiny_pipe):
    prompts = [Prompt(id=str(i), text="a cat", seed=i) for i in range(3)]
    with counting() as spent:
        list(diffusion.generate(tiny_pipe, prompts, steps=4, guidance_scale=3.0, batch_size=3))
    assert spent.unet == 3 * 2 * 4 and spent.unet_with_gradient == 0
    assert spent.text == 2  # "a cat" and "", each encoded once


def test_passes_with_a_graph_are_told_apart_and_counting_ends(tiny_pipe):
    x, states = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    with counting() as spent:
        tiny_pipe.unet(x, torch.tensor([1, 2]), states)
    tiny_pipe.unet(x, torch.tensor([1, 2]), states)
    assert (spent.unet, spent.unet_with_gradient) == (2, 2)
