"""Progress of long steps: kept while a step fails, gone when it succeeds, never half-read."""

import pytest
import torch

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
