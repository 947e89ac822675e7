"""Loading: what is saved comes back, and whatever is wrong is one line before any weight is read."""

from __future__ import annotations

import json
import shutil

import diffusers
import pytest
import torch

from erasebench import diffusion

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_pipe):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipe.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    """A copy to damage; reading a weight from it fails the test."""

    def read(*_, **__):
        pytest.fail("weights were read before the folder was checked")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", read)
    return shutil.copytree(saved, tmp_path / "model")


def refusal(kind, path, **options):
    with pytest.raises(kind) as caught:
        diffusion.load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_saved_pipeline_comes_back(saved, tiny_pipe):
    pipe = diffusion.load(saved)
    assert diffusion.fingerprint(pipe) == diffusion.fingerprint(tiny_pipe)
    assert diffusion.changed_tensors(pipe, tiny_pipe) == {}
    assert pipe.safety_checker is None
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert not part.training and not any(p.requires_grad for p in part.parameters())
    assert {t.dtype for t in diffusion.load(saved, dtype="float64").unet.parameters()} == {torch.float64}


def test_sdxl_comes_back(tmp_path, tiny_xl_pipe):
    tiny_xl_pipe.save_pretrained(tmp_path)
    pipe = diffusion.load(str(tmp_path))
    assert type(pipe) is type(tiny_xl_pipe)
    assert diffusion.fingerprint(pipe) == diffusion.fingerprint(tiny_xl_pipe)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_half_precision_files_load_as_float32(tmp_path, make_pipe, variant):
    half = make_pipe(dtype=torch.float16)
    half.save_pretrained(tmp_path, variant=variant)
    pipe = diffusion.load(tmp_path)
    for part in ("unet", "vae", "text_encoder"):
        ours, saved = getattr(pipe, part).state_dict(), getattr(half, part).state_dict()
        for key, value in ours.items():
            assert value.dtype == saved[key].float().dtype
            assert torch.equal(value, saved[key].float())


def test_parts_that_are_not_used_need_not_be_there(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert diffusion.load(folder).safety_checker is None


def test_no_pipeline(folder, tmp_path):
    (folder / "model_index.json").unlink()
    message = refusal(FileNotFoundError, folder)
    assert "has no model_index.json" in message and "scheduler" in message


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("unet/config.json", "has no config.json"),
        ("vae/diffusion_pytorch_model.safetensors", "has no weights"),
        ("tokenizer/tokenizer.json", "has no tokenizer.json or vocab.json"),
        ("tokenizer/tokenizer_config.json", "has no tokenizer_config.json"),
        ("scheduler/scheduler_config.json", "has no scheduler_config.json"),
    ],
)
def test_a_missing_file_is_named(folder, file, expected):
    (folder / file).unlink()
    message = refusal(FileNotFoundError, folder)
    assert expected in message and file.split("/")[0] in message


def test_missing_parts_are_named(folder):
    shutil.rmtree(folder / "unet")
    shutil.rmtree(folder / "vae")
    assert "model_index.json names unet, vae" in refusal(FileNotFoundError, folder)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("{not json", "must be JSON"),
        ("[]", "says None"),
        ('{"_class_name": "PixArtAlphaPipeline"}', "says 'PixArtAlphaPipeline'"),
        ('{"_class_name": "StableDiffusionPipeline", "unet": ["a", "b"]}', "must have scheduler, text_encoder"),
    ],
)
def test_other_pipelines(folder, index, expected):
    (folder / "model_index.json").write_text(index)
    assert expected in refusal(ValueError, folder)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pth"])
def test_pickled_weights_are_refused(folder, suffix):
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / f"unet/diffusion_pytorch_model{suffix}")
    message = refusal(ValueError, folder)
    assert f"diffusion_pytorch_model{suffix} are pickled" in message
    assert "save_pretrained(folder, safe_serialization=True)" in message


@pytest.mark.parametrize("name", ["sd-v1-4.ckpt", "owner/model.pt", "erased.PTH"])
def test_a_pickled_file_is_refused(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"\x80\x04")
    assert "pickled" in refusal(ValueError, file)
    assert "pickled" in refusal(ValueError, name)  # whether or not it exists


def test_a_single_file_is_told_how_to_become_a_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert "from_single_file" in refusal(ValueError, file)


@pytest.mark.parametrize("keep", [0, 4, 5000, -1])
def test_cut_off_weights_are_found(folder, keep):
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    message = refusal(ValueError, folder)
    assert str(file) in message and "download it again" in message


def test_a_git_lfs_pointer_is_no_model(folder):
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "must be whole safetensors" in refusal(ValueError, folder)


def test_neither_folder_nor_hub_id(tmp_path):
    assert "no such folder" in refusal(FileNotFoundError, tmp_path / "nothing")
    assert "no such folder" in refusal(FileNotFoundError, "nothing")
    file = tmp_path / "model.txt"
    file.write_text("")
    assert "got a file" in refusal(FileNotFoundError, file)


@pytest.mark.parametrize("revision", [None, "main", "abc"])
def test_a_hub_id_needs_a_pinned_revision(revision):
    message = refusal(ValueError, "owner/model", revision=revision)
    assert "pinned revision" in message and "model.revision" in message


def test_hub_trouble_is_one_line(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("cannot connect\nsecond line")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", unreachable)
    message = refusal(OSError, "owner/model", revision=COMMIT)
    assert "owner/model" in message and "cannot connect" in message


def test_unknown_dtype(saved):
    assert "got 'float8'" in refusal(ValueError, saved, dtype="float8")
