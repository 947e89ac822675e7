import subprocess
import sys

import pytest

from erasebench.store.sources import folder_hash, input_hashes, source_hash, targets


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


def test_a_loose_helper_counts_and_installed_packages_comments_and_type_hints_do_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "eb_mine.py").write_text(
        "import numpy\nfrom typing import TYPE_CHECKING\nimport eb_helper\nif TYPE_CHECKING:\n    import eb_hints\n"
    )
    helper, hints = tmp_path / "eb_helper.py", tmp_path / "eb_hints.py"
    helper.write_text("def f():\n    '''Says one.'''\n    return 1\n")
    hints.write_text("A = 1\n")
    first = source_hash(["eb_mine.Mine"])
    helper.write_text("def f():\n    '''Says uno.'''\n    # one\n    return 1\n")
    hints.write_text("A = 2\n")
    assert source_hash(["eb_mine.Mine"]) == first
    helper.write_text("def f():\n    return 2\n")
    assert source_hash(["eb_mine.Mine"]) != first


@pytest.mark.parametrize(
    ("node", "counts"),
    [
        ({"weights": "best.onnx"}, True),  # a suffix
        ({"labels": "sub/list"}, True),  # a separator
        ({"anything": ["sub"]}, False),  # a word that happens to be a folder
        ({"path": "sub"}, True),  # a word where a file belongs
        ({"phrases": ["cat", "a photo of a cat"]}, False),
        ({"_target_": "sub/list"}, False),
    ],
)
def test_every_file_a_config_names_counts_by_its_contents(tmp_path, monkeypatch, node, counts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "list").write_text("1")
    (tmp_path / "best.onnx").write_text("1")
    before = input_hashes(node)
    (tmp_path / "sub" / "list").write_text("2")
    (tmp_path / "best.onnx").write_text("2")
    assert (before != input_hashes(node)) is counts and bool(before) is counts


def test_the_home_folder_is_expanded_before_hashing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "v.npy").write_bytes(b"1")
    assert input_hashes({"path": "~/v.npy"}) == input_hashes({"path": str(tmp_path / "v.npy")}) != []


def test_harness_code_that_a_target_reaches_counts_and_nothing_is_imported():
    code = (
        "import sys; from erasebench.store.sources import source_hash;"
        "h = source_hash(['erasebench.diffusion.sampling.generate', 'methods.rece.RECE']);"
        "print(h, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"


def test_a_folder_of_real_images_counts_by_its_contents(tmp_path, monkeypatch):
    """Its name may be one plain word, and a distance to other images is another number."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "a.png").write_bytes(b"one")
    before = input_hashes({"kid": {"real": "coco"}})
    (tmp_path / "coco" / "b.png").write_bytes(b"two")
    after = input_hashes({"kid": {"real": "coco"}})
    assert len(before) == len(after) == 1 and before != after
