"""The one-off converter: tensors in, tensors out, and nothing that could run."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file

from erasebench.convert import convert, main


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": x, "epoch": 3}])
def test_tensors_come_out_as_they_went_in(tmp_path, wrap):
    weight = torch.arange(6.0).view(2, 3)
    tensors = {"a.weight": weight.T, "b.weight": weight, "c.weight": weight.half()}  # shared and strided
    torch.save(wrap(tensors), tmp_path / "in.pt")
    assert convert(tmp_path / "in.pt", tmp_path / "new" / "out.safetensors")[0] == 3
    found = load_file(tmp_path / "new" / "out.safetensors")
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())


def test_every_part_is_kept_under_its_name(tmp_path, capsys):
    content = {"unet": {"a.weight": torch.ones(2)}, "text_encoder": {"text_encoder.b.weight": torch.ones(3)}}
    torch.save(content | {"modifier_token": {"<new1>": torch.ones(4)}}, tmp_path / "delta.bin")
    assert main([str(tmp_path / "delta.bin"), str(tmp_path / "out.safetensors")]) == 0
    assert set(load_file(tmp_path / "out.safetensors")) == {"unet.a.weight", "text_encoder.b.weight"}
    assert "left out: modifier_token (1 entries)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "left_out"),
    [
        (None, 1.0, ["ema (1 entries)", "step"]),
        ("ema", 2.0, ["model_state_dict (1 entries)", "step"]),
    ],
)
def test_one_of_two_dictionaries_is_kept_and_the_other_named(tmp_path, key, value, left_out):
    weights = {"model_state_dict": {"a": torch.full((2,), 1.0)}, "ema": {"a": torch.full((2,), 2.0)}, "step": 7}
    torch.save(weights, tmp_path / "in.ckpt")
    assert convert(tmp_path / "in.ckpt", tmp_path / "out.safetensors", key) == (1, left_out)
    assert (load_file(tmp_path / "out.safetensors")["a"] == value).all()


def test_a_key_that_is_not_there_or_not_given_is_named(tmp_path, capsys):
    torch.save({"generator": {"a": torch.ones(1)}, "critic": {"a": torch.ones(1)}}, tmp_path / "in.pt")
    assert main([str(tmp_path / "in.pt"), str(tmp_path / "o.safetensors")]) == 2
    assert "choose one of generator, critic: key=generator" in capsys.readouterr().err
    assert main([str(tmp_path / "in.pt"), str(tmp_path / "o.safetensors"), "key=emma"]) == 2
    assert "key must be one of generator, critic; got 'emma'" in capsys.readouterr().err


def test_code_is_neither_run_nor_converted(tmp_path, capsys):
    torch.save({"a": torch.zeros(1), "b": Trap(tmp_path / "sprung")}, tmp_path / "in.pt")
    assert main([str(tmp_path / "in.pt"), str(tmp_path / "out.safetensors")]) == 2
    assert "must hold tensors alone" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "must hold tensors by name; got list"),
        ({"a": torch.zeros(1), "step": 3}, "'step' is a int"),
        ({"state_dict": {"a": {"b": torch.zeros(1)}}}, "'a' is a dict"),
        ({}, "must hold tensors by name"),
        (torch.nn.Linear(1, 1), "must hold tensors alone"),
    ],
)
def test_anything_but_tensors_by_name_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "in.pt")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors")


def test_bad_paths_and_files(tmp_path, capsys):
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ValueError, match="must hold tensors alone"):
        convert(tmp_path / "text.pt", tmp_path / "out.safetensors")
    with pytest.raises(FileNotFoundError, match="found no"):
        convert(tmp_path / "none.pt", tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match=r"must end with \.safetensors"):
        convert(tmp_path / "text.pt", tmp_path / "out.pt")
    assert main(["one"]) == 2 and "usage" in capsys.readouterr().err
