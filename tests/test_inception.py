"""Inception features: plumbing with random weights of the real shape, and reference statistics."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from erasebench.judges.inception import Inception, write_reference
from erasebench.judges.moments import Moments
from erasebench.judges.resizing import CONVENTIONS, resized
from evaluators.fid import FID, frechet_distance, moments

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
pytest.importorskip("torch_fidelity")
save_tensors = pytest.importorskip("safetensors.torch").save_file


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
    assert Inception().name == "inception-2015-12-05.torchmetrics"
    assert Inception(convention="clean_fid").name == "inception-2015-12-05.clean_fid"
    with pytest.raises(
        ValueError, match="convention must be one of torchmetrics, torch_fidelity, pytorch_fid, clean_fid"
    ):
        Inception(convention="clean")
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
    other = Inception(reference_file=str(tmp_path / "seven.safetensors"), convention="clean_fid")
    found.check_files()
    with pytest.raises(ValueError, match=r"must be of inception-2015-12-05.clean_fid; got one of .*torchmetrics"):
        other.check_files()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="at least two images"):
        write_reference(network, tmp_path / "empty", tmp_path / "none.safetensors")


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """Random weights in torchvision's Inception, whose tensors have the same names and shapes."""
    torch.manual_seed(0)
    plain = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    for module in plain.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # keeps the activations' size through the layers
    path = tmp_path_factory.mktemp("inception") / "random.safetensors"
    save_tensors(plain.state_dict(), path)
    return path, plain.state_dict()


def pictures(*sizes):
    """Images with structure in every frequency, so that resizers differ."""
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (s, s, 3), dtype=np.uint8)) for s in sizes]


@pytest.mark.slow
def test_the_network_gives_2048_features_for_images_of_any_size(random_weights):
    images, weights = pictures(64, 64, 80), str(random_weights[0])
    network = Inception(weights=weights, batch_size=2)
    features = network.features(images)
    assert features.shape == (3, 2048) and features.dtype == np.float32 and np.isfinite(features).all()
    size = np.abs(features).mean()
    assert size > 1e-2 and np.abs(features[0] - features[1]).mean() > 0.01 * size
    np.testing.assert_allclose(network.features(images[2:]), features[2:], atol=1e-3 * size)


def test_each_resize_is_its_package_s():
    """Without the network: sizes above and below 299, against the packages' own functions."""
    from cleanfid.resize import build_resizer
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    seen = []
    for image in pictures(64, 400):
        pixels = np.asarray(image)
        whole = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
        theirs = {
            "clean_fid": build_resizer("clean")(pixels).transpose(2, 0, 1)[None],
            "pytorch_fid": build_resizer("legacy_pytorch")(pixels).transpose(2, 0, 1)[None],
            "torch_fidelity": interpolate_bilinear_2d_like_tensorflow1x(whole, (299, 299), align_corners=False).numpy(),
            "torchmetrics": torch.nn.functional.interpolate(whole, (299, 299), mode="bilinear", antialias=True).numpy(),
        }
        assert set(theirs) == set(CONVENTIONS)
        for name, expected in theirs.items():
            scaled = expected / 127.5 - 1 if name == "pytorch_fid" else (expected - 128) / 128
            found = resized(pixels[None], name).numpy()
            np.testing.assert_allclose(found, scaled, atol=1e-5)
            seen.append(found)
    for i, a in enumerate(seen[4:]):  # 400 px are made smaller: no two conventions agree
        assert all(np.abs(a - b).mean() > 1e-3 for b in seen[4 + i + 1 :])


@pytest.mark.slow
def test_features_are_those_of_the_packages_with_the_same_weights(random_weights, tmp_path, monkeypatch):
    from cleanfid import fid as clean
    from pytorch_fid import fid_score, inception
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import NoTrainInceptionV3

    path, state = random_weights
    files, images = [], pictures(330, 330)
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
        files.append(str(tmp_path / f"{i}.png"))
    torch.save(state, tmp_path / "state.pth")
    pixels = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2)
    made = {
        "torchmetrics": NoTrainInceptionV3("x", ["2048"], str(tmp_path / "state.pth")),
        "torch_fidelity": FeatureExtractorInceptionV3("x", ["2048"], str(tmp_path / "state.pth")),
    }
    with torch.inference_mode():
        theirs = {name: np.asarray(network(pixels)[0] if name != "torchmetrics" else network(pixels)).reshape(2, 2048)
                  for name, network in made.items()}  # fmt: skip
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: state)
    own = inception.InceptionV3([3])
    theirs["pytorch_fid"] = fid_score.get_activations(files, own, batch_size=2, num_workers=0)

    def layers(x):  # clean-fid's TorchScript file is a download; pytorch-fid's layers stand in for it
        for block in own.blocks:
            x = block(x)
        return x.reshape(len(x), 2048)

    with torch.inference_mode():
        theirs["clean_fid"] = clean.get_files_features(
            files, lambda x: layers((x - 128) / 128), num_workers=0, device="cpu", mode="clean", verbose=False
        )
    assert set(theirs) == set(CONVENTIONS)
    for name, expected in theirs.items():
        found = Inception(weights=str(path), convention=name).features(images)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).mean(), rtol=1e-3, err_msg=name)
    for a, b in pairwise(CONVENTIONS):
        assert np.abs(theirs[a] - theirs[b]).mean() > 1e-3 * np.abs(theirs[a]).mean()


def test_the_distance_is_that_of_clean_fid_and_pytorch_fid():
    from cleanfid.fid import frechet_distance as clean
    from pytorch_fid.fid_score import calculate_frechet_distance as pytorch

    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(300, 40)), 1.3 * generator.normal(size=(250, 40)) + 0.2
    first, second = moments(x), moments(y)
    ours = frechet_distance(*first, *second)
    np.testing.assert_allclose(ours, clean(*first, *second), rtol=1e-9)
    np.testing.assert_allclose(ours, pytorch(*first, *second), rtol=1e-9)


def test_moments_in_blocks_are_those_of_all_rows_far_from_zero():
    rows = np.random.default_rng(0).normal(size=(101, 5)) + 1e6  # where a sum of squares loses its digits
    whole = Moments(5)
    for block in (rows[:1], rows[1:1], rows[1:60], rows[60:]):
        whole.add(block)
    np.testing.assert_allclose(whole.mean, rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(whole.covariance(), np.cov(rows.T), rtol=1e-7, atol=1e-9)
