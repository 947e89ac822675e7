"""Adapters: what hangs beside the weights is forked, fingerprinted, stored, restored and met by gradients."""

from __future__ import annotations

import json

import pytest
import torch

from erasebench import diffusion
from erasebench.diffusion import erasures
from erasebench.diffusion.adapters import attach, attached
from erasebench.report.checks import erasure_flags
from methods.receler import Eraser, Erasing
from methods.spm import Membrane

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"
OTHER = "up_blocks.0.attentions.0.transformer_blocks.0.attn2"


def tensors(pipe, seed=0, paths=(LAYER, OTHER), rank=3):
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for path in paths:
        module = Erasing(pipe.unet.get_submodule(path).to_out[0].out_features, rank)
        found |= {f"{path}.{leaf}": torch.randn(t.shape, generator=draw) for leaf, t in module.state_dict().items()}
    return found


def answer(pipe, states=None):
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    states = diffusion.encode(pipe, ["a cat"]) if states is None else states
    return pipe.unet(z, torch.tensor([500]), encoder_hidden_states=states).sample


@pytest.fixture
def erased(tiny_pipe):
    return attach(tiny_pipe, Eraser(rank=3), tensors(tiny_pipe))


@torch.no_grad()
def test_it_comes_back_from_its_files_and_the_original_is_left_alone(tiny_pipe, erased, tmp_path):
    before = diffusion.fingerprint(tiny_pipe)
    erasures.save(tmp_path, erased, tiny_pipe, method={})
    again = erasures.load(tmp_path, tiny_pipe)
    assert attached(again)[0].adapter == Eraser(rank=3) and not attached(tiny_pipe)
    assert diffusion.fingerprint(again) == diffusion.fingerprint(erased) != before == diffusion.fingerprint(tiny_pipe)
    assert torch.equal(answer(again), answer(erased)) and not torch.equal(answer(again), answer(tiny_pipe))
    assert json.loads((tmp_path / erasures.RECORD).read_text())["adapters"] == [
        {"_target_": "methods.receler.Eraser", "rank": 3}
    ]


def test_forks_share_its_tensors_and_a_value_more_is_another_fingerprint(tiny_pipe, erased):
    fork = diffusion.fork(erased)
    hooks = [next(iter(p.unet.get_submodule(LAYER)._forward_hooks.values())) for p in (erased, fork)]
    assert hooks[0] is not hooks[1]
    assert hooks[0].up.weight.data_ptr() == hooks[1].up.weight.data_ptr()
    other = tensors(tiny_pipe)
    other[f"{LAYER}.up.bias"] += 1
    assert diffusion.fingerprint(attach(tiny_pipe, Eraser(rank=3), other)) != diffusion.fingerprint(fork)


@torch.no_grad()
def test_an_edit_on_top_keeps_it_and_stores_itself_alone(tiny_pipe, erased, tmp_path):
    edited = diffusion.apply_tensors(erased, {"unet.conv_in.weight": tiny_pipe.unet.conv_in.weight * 2})
    assert attached(edited) == attached(erased)
    erasures.save(tmp_path, edited, erased)
    assert not (tmp_path / erasures.ADAPTERS).exists()
    assert torch.equal(answer(erasures.load(tmp_path, erased)), answer(edited))
    (tmp_path / "second").mkdir()
    both = attach(edited, Eraser(rank=3), tensors(tiny_pipe, seed=5, paths=(LAYER,)))
    erasures.save(tmp_path / "second", both, edited)
    assert torch.equal(answer(erasures.load(tmp_path / "second", edited)), answer(both))
    assert len(attached(erasures.load(tmp_path / "second", edited))) == 2


def test_gradients_meet_it(tiny_pipe, erased):
    states = diffusion.encode(tiny_pipe, ["a cat"])
    found = []
    for pipe in (tiny_pipe, erased):
        x = states.clone().requires_grad_()
        found.append(torch.autograd.grad(answer(pipe, x).square().sum(), x)[0])
    assert found[1].abs().max() > 0 and not torch.allclose(*found)


def test_an_adapter_is_no_model_left_as_it_was():
    assert not erasure_flags({"changed_tensors": 0, "adapters": 1})
    assert erasure_flags({"changed_tensors": 0, "adapters": 0})


def test_what_does_not_fit_or_is_not_ours_is_refused(tiny_pipe, erased, tmp_path):
    with pytest.raises(ValueError, match="must hang on a layer of the UNet"):
        attach(tiny_pipe, Eraser(rank=3), {"nowhere.up.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="must have tensors"):
        attach(tiny_pipe, Eraser(rank=4), tensors(tiny_pipe))
    with pytest.raises(ValueError, match="must have tensors"):
        attach(tiny_pipe, Membrane(words=("cat",), rank=1, alpha=1.0), {"conv_in.up.weight": torch.zeros(16, 1, 1, 1)})
    erasures.save(tmp_path, erased, tiny_pipe)
    record = tmp_path / erasures.RECORD
    record.write_text(json.dumps({"adapters": [{"_target_": "os.system", "command": "true"}]}))
    with pytest.raises(ValueError, match=r"names os\.system, which must be a class that a config in use names"):
        erasures.load(tmp_path, tiny_pipe)
    broken = tensors(tiny_pipe)
    broken[f"{LAYER}.up.bias"][0] = float("nan")
    (tmp_path / "nan").mkdir()
    with pytest.raises(ValueError, match="erased model must be finite; 0"):
        erasures.save(tmp_path / "nan", attach(tiny_pipe, Eraser(rank=3), broken), tiny_pipe)
