"""Progress of long steps: kept while a step fails, gone when it succeeds, never half-read."""

import pytest
import torch
from safetensors import SafetensorError

from erasebench.store import workspace
from erasebench.store.workspace import Workspace


def test_what_was_saved_last_is_loaded(tmp_path):
    space = Workspace(tmp_path / "step")
    assert space.load("training") is None
    space.save("training", {"w": torch.arange(3.0)}, step=1)
    space.save("training", {"w": torch.arange(4.0)}, step=2, losses=[0.5])
    tensors, values = space.load("training")
    assert torch.equal(tensors["w"], torch.arange(4.0)) and values == {"step": 2, "losses": [0.5]}
    assert [p.name for p in (tmp_path / "step").iterdir()] == ["training.safetensors"]


def test_a_damaged_file_counts_as_none(tmp_path):
    space = Workspace(tmp_path)
    space.save("training", {"w": torch.ones(2)})
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    assert space.load("training") is None


def test_outside_a_run_nothing_is_kept():
    workspace.current().save("training", {"w": torch.ones(2)})
    assert workspace.current().load("training") is None


def test_the_folder_stays_after_a_failure_and_goes_after_success(tmp_path):
    folder = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt), workspace.use(folder):
        workspace.current().save("training", {"w": torch.ones(2)})
        raise KeyboardInterrupt
    assert folder.exists() and workspace.current().folder is None
    with workspace.use(folder) as space:
        assert space.load("training") is not None
    assert not folder.exists()


def test_a_flipped_bit_counts_as_none(tmp_path):
    space = Workspace(tmp_path)
    space.save("training", {"w": torch.ones(64), "b": torch.ones(3, dtype=torch.bfloat16)}, step=3)
    path = tmp_path / "training.safetensors"
    whole = path.read_bytes()
    for place in range(8, len(whole)):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        found = space.load("training")
        if found is not None:  # a blank of the header: nothing it says has changed
            assert torch.equal(found[0]["w"], torch.ones(64)) and found[1] == {"step": 3}


def test_a_full_disk_loses_progress_and_not_the_work(tmp_path, monkeypatch, caplog):
    space = Workspace(tmp_path)
    space.save("training", {"w": torch.ones(2)}, step=1)

    def full(*_, **__):
        raise SafetensorError('Error while serializing: IoError(Os { code: 28, message: "No space left on device" })')

    monkeypatch.setattr("safetensors.torch.save_file", full)
    space.save("training", {"w": torch.zeros(2)}, step=2)
    assert "progress is not kept" in caplog.text and "No space left" in caplog.text
    assert space.load("training")[1] == {"step": 1}
