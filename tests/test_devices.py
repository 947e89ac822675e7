"""Devices: what torch offers is taken, anything else is one line that says what there is."""

from __future__ import annotations

import pytest
import torch

from erasebench import devices, diffusion
from erasebench.devices import check_device


@pytest.mark.parametrize("value", ["gpu", "GPU", "cuda0", "cpu:", "cpu:1", "cpu:x", "tpu:0", "", None, 0, True, "meta"])
def test_what_is_no_device_is_one_line(value):
    with pytest.raises(ValueError, match=r"clip\.device must be a device torch has here, .*auto, cpu.*write") as error:
        check_device("clip.device", value)
    assert "\n" not in str(error.value)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(devices, "offered", lambda: ["cpu"])
    with pytest.raises(ValueError, match=r"got 'cuda:1' \(cuda: torch finds none\); write model.device=auto"):
        check_device("model.device", "cuda:1")
    assert check_device("model.device", "auto") == check_device("model.device", "cpu") == "cpu"


def test_several_gpus_are_numbered(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert devices.offered() == ["cpu", "cuda:0", "cuda:1"] and check_device("x", "auto") == "cuda"
    assert check_device("x", "cuda:1") == "cuda:1" and check_device("x", "cuda") == "cuda"
    with pytest.raises(ValueError, match="got 'cuda:2'"):
        check_device("x", "cuda:2")


def test_a_pipeline_is_not_read_for_a_device_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"model.device must be a device torch has here"):
        diffusion.load(tmp_path, device="gpu")
