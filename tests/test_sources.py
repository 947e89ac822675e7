import pytest

from erasebench.store.sources import folder_hash, source_hash, targets


def test_targets_are_found_wherever_they_are():
    assert targets([{"_target_": "a.B", "c": {"d": [{"_target_": "e.F"}]}}, {"g": 1}]) == ["a.B", "e.F"]


def test_a_changed_module_or_sibling_changes_the_hash_and_others_do_not(tmp_path, monkeypatch):
    package = tmp_path / "mymethods"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "algebra.py").write_text("x = 1\n")
    (package / "mine.py").write_text("from mymethods.algebra import x\n")
    (package / "other.py").write_text("y = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    first = source_hash(["mymethods.mine.Mine"])
    (package / "other.py").write_text("y = 2\n")
    assert source_hash(["mymethods.mine.Mine"]) == first
    (package / "algebra.py").write_text("x = 2\n")
    assert source_hash(["mymethods.mine.Mine"]) != first
    with pytest.raises(ValueError, match=r"mymethods\.nosuch"):
        source_hash(["mymethods.nosuch.Thing"])


def test_a_folder_is_its_files_and_remembers_them(tmp_path):
    model, memory = tmp_path / "model", tmp_path / "memory.json"
    model.mkdir()
    (model / "a.json").write_text("{}")
    first = folder_hash(model, memory)
    assert folder_hash(model, memory) == first and memory.exists()
    (model / "b.safetensors").write_bytes(b"1")
    assert folder_hash(model, memory) != first
    memory.write_text("{broken")
    (model / "b.safetensors").unlink()
    assert folder_hash(model, memory) == first
