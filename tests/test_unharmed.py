"""The model a method or attack is given stays as it was, or nothing of what it made is kept."""

import pytest
import torch
from diffusers import DDPMScheduler

from erasebench import diffusion, loaded


def in_place(pipe):
    for parameter in pipe.unet.mid_block.parameters():
        parameter.data.mul_(0.5)


def swapped_tensor(pipe):
    layer = (
        pipe.text_encoder.get_submodule("text_model.final_layer_norm")
        if hasattr(pipe.text_encoder, "text_model")
        else pipe.text_encoder.final_layer_norm
    )
    layer.weight = torch.nn.Parameter(layer.weight + 1e-3, requires_grad=False)


def forgotten_hook(pipe):
    pipe.unet.mid_block.register_forward_hook(lambda module, args, output: output * 0)


def other_scheduler(pipe):
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)


@pytest.mark.parametrize("harm", [in_place, swapped_tensor, forgotten_hook, other_scheduler])
def test_a_pipeline_that_was_changed_is_refused_and_forgotten(make_pipe, harm):
    pipe = make_pipe()
    loaded.pipes["model"] = pipe
    with (
        pytest.raises(
            ValueError, match=r"method mine must leave the pipeline .*; it changed it in place .*fork\(pipe\)"
        ),
        loaded.unharmed("method mine", pipe),
    ):
        harm(pipe)
    assert not loaded.pipes


def test_a_failed_method_that_left_damage_is_forgotten_and_its_own_error_is_raised(make_pipe):
    pipe = make_pipe()
    loaded.pipes["model"] = pipe
    with pytest.raises(ZeroDivisionError), loaded.unharmed("method mine", pipe):
        in_place(pipe)
        _ = 1 / 0
    assert not loaded.pipes


def test_work_on_a_fork_is_no_harm(make_pipe):
    pipe = make_pipe()
    loaded.pipes["model"] = pipe
    with loaded.unharmed("method mine", pipe):
        erased = diffusion.fork(pipe)
        for layer in diffusion.cross_attention_projections(erased).values():
            layer.weight = torch.nn.Parameter(layer.weight * 0.5, requires_grad=False)
        _ = [*diffusion.generate(erased, [], steps=1)]
    assert loaded.pipes.pop("model") is pipe


def test_what_transformers_hangs_on_for_its_own_recording_is_no_harm(make_xl_pipe):
    pipe = make_xl_pipe()
    with loaded.unharmed("method mine", pipe):
        diffusion.encode(pipe, ["a cat"])
