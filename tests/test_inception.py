"""Inception features: plumbing with random weights of the real shape, and reference statistics."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from erasebench.judges.inception import Inception, write_reference
from evaluators.fid import FID, moments


@pytest.mark.parametrize("field", ["weights", "reference_file"])
@pytest.mark.parametrize("path", ["inception.pth", "absent.safetensors"])
def test_files_that_cannot_be_used_are_refused_early(field, path):
    with pytest.raises(ValueError, match=f"{field} must be an existing .safetensors file"):
        Inception(**{field: path})


def test_files_of_another_kind_are_refused_by_their_headers(tmp_path):
    path = tmp_path / "stats.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    for field in ("weights", "reference_file"):
        with pytest.raises(ValueError, match=r"stats.safetensors must be whole safetensors; got 42 bytes"):
            Inception(**{field: str(path)}).check_files()
    save_file({"mean": np.zeros(64), "covariance": np.zeros((64, 64)), "count": np.array([9])}, path)
    with pytest.raises(ValueError, match=r"must hold mean \[2048\]; got \[64\]; write it with"):
        FID(features=Inception(reference_file=str(path))).check()
    with pytest.raises(ValueError, match=r"features.device must be a device torch has here"):
        FID(features=Inception(device="gpu")).check()


def test_the_name_carries_the_resize():
    assert Inception().name == "inception-2015-12-05.antialias"
    assert Inception(antialias=False).name == "inception-2015-12-05.tf1_bilinear"
    assert Inception().reference() is None and Inception().reference_name == "real"


class MeanColour(Inception):
    """Cheap features of the right width."""

    def features(self, images):
        rows = np.zeros((len(images), 2048), dtype=np.float32)
        for row, image in zip(rows, images, strict=True):
            row[:3] = np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) / 255
        return rows


def test_reference_statistics_are_those_of_the_folder(tmp_path):
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (6, 5 + i, 3), dtype=np.uint8)) for i in range(7)]
    (tmp_path / "real").mkdir()
    for i, image in enumerate(images):
        image.save(tmp_path / "real" / f"{i}.png")
    (tmp_path / "real" / "notes.txt").write_text("no image")
    network = MeanColour(batch_size=3)
    assert write_reference(network, tmp_path / "real", tmp_path / "seven.safetensors") == 7
    found = Inception(reference_file=str(tmp_path / "seven.safetensors"))
    mean, covariance, count = found.reference()
    expected = moments(network.features(images))
    np.testing.assert_allclose(mean, expected[0], atol=1e-12)
    np.testing.assert_allclose(covariance, expected[1], atol=1e-12)
    assert count == 7 and found.reference_name == "seven"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="at least two images"):
        write_reference(network, tmp_path / "empty", tmp_path / "none.safetensors")


@pytest.mark.slow
def test_the_network_gives_2048_features_for_images_of_any_size(tmp_path):
    """Random weights in torchvision's Inception, whose tensors have the same names and shapes."""
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    pytest.importorskip("torch_fidelity")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    plain = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    for module in plain.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # keeps the activations' size through the layers
    weights = tmp_path / "random.safetensors"
    save_file(plain.state_dict(), weights)
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (s, s, 3), dtype=np.uint8)) for s in (64, 64, 80)]
    network = Inception(weights=str(weights), batch_size=2)
    features = network.features(images)
    assert features.shape == (3, 2048) and features.dtype == np.float32 and np.isfinite(features).all()
    size = np.abs(features).mean()
    assert size > 1e-2 and np.abs(features[0] - features[1]).mean() > 0.01 * size
    np.testing.assert_allclose(network.features(images[2:]), features[2:], atol=1e-3 * size)
    other = Inception(weights=str(weights), antialias=False).features(images)
    assert np.abs(other - features).mean() > 0.01 * size
