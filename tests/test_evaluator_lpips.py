"""LPIPS on random AlexNet weights against torchmetrics' network and a derivation in NumPy; the embedded world's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torchmetrics.functional.image.lpips import _LPIPS

from erasebench.emoji.classifier import EmojiJudge
from erasebench.judges.inception import Inception
from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Prompt
from evaluators.layer_distance import LayerDistance
from evaluators.lpips import LPIPS


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    torch.manual_seed(0)
    state = {k: v for k, v in torchvision.models.alexnet(weights=None).state_dict().items() if k.startswith("features")}
    path = tmp_path_factory.mktemp("alex") / "alexnet.safetensors"
    save_file(state, path)
    return path, state


def pictures(seed, sizes):
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def image_set(folder, images, failed=()):
    rows = []
    for i, image in enumerate(images):
        prompt = Prompt(id=f"p{i}", text=f"t{i}", seed=i, group=("target", "neighbour", "coco", "attack")[i % 4])
        rows.append((prompt, None if i in failed else image, "nan" if i in failed else "ok"))
    write_shard(folder, 0, [(p.digest(), image, status) for p, image, status in rows])
    return ImageSet(key=str(folder), folder=folder, prompts=tuple(p for p, _, _ in rows))


def by_numpy(state, heads, a, b):
    """Zhang et al.'s equation 1 place by place, of arrays [h, w, 3] in 0..255."""
    import torch.nn.functional as F

    def layers(x):
        x = torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[
            :, None, None
        ]
        for i, (stride, padding, pool) in {
            0: (4, 2, 0),
            3: (1, 2, 1),
            6: (1, 1, 1),
            8: (1, 1, 0),
            10: (1, 1, 0),
        }.items():
            x = F.max_pool2d(x, 3, 2) if pool else x
            x = F.relu(F.conv2d(x, state[f"features.{i}.weight"], state[f"features.{i}.bias"], stride, padding))
            yield x[0].numpy().astype(np.float64)

    total = 0.0
    for i, (x, y) in enumerate(zip(layers(a), layers(b), strict=True)):
        w = heads[i].numpy().ravel()
        places = [
            (w * (x[:, r, c] / np.linalg.norm(x[:, r, c]) - y[:, r, c] / np.linalg.norm(y[:, r, c])) ** 2).sum()
            for r in range(x.shape[1])
            for c in range(x.shape[2])
        ]
        total += np.mean(places)
    return total


def test_equals_torchmetrics_and_the_equation(tmp_path, random_weights):
    path, state = random_weights
    sizes = [(96, 96), (96, 96), (80, 128), (96, 96), (96, 96)]
    before, after = pictures(0, sizes), pictures(1, sizes)
    original, erased = image_set(tmp_path / "o", before), image_set(tmp_path / "e", after)
    lpips = LPIPS(weights=str(path), batch_size=2)
    lpips.check()
    found = {(s.metric, s.prompt_id): s for s in lpips.score(erased, original)}
    assert len(found) == 8  # the attack's is left out
    reference = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    heads = [lin.model[-1].weight for lin in reference.lins]
    own = reference.state_dict()
    for name, value in state.items():
        _, place, kind = name.split(".")
        (key,) = [k for k in own if k.startswith("net.") and k.endswith(f".{place}.{kind}")]
        own[key].copy_(value)
    for i in (0, 1, 2, 4):
        a, b = np.array(after[i]), np.array(before[i])
        x, y = (torch.from_numpy(p).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in (a, b))
        full = found["lpips.alex_v0.1.full", f"p{i}"]
        assert full.value == pytest.approx(float(reference(x, y)), rel=1e-4) and full.value > 0
        assert full.value == pytest.approx(by_numpy(state, heads, a, b), rel=1e-3)
        small = [np.array(im.resize((64, 64), Image.Resampling.BILINEAR)) for im in (after[i], before[i])]
        expected = by_numpy(state, heads, *small)
        assert found["lpips.alex_v0.1.64px", f"p{i}"].value == pytest.approx(expected, rel=1e-3)
    assert (
        found["lpips.alex_v0.1.full", "p0"].higher_is_better
        and not found["lpips.alex_v0.1.full", "p1"].higher_is_better
    )
    assert {s.value for s in lpips.score(original, original)} == {0.0}


def test_a_broken_image_changes_no_other_value(tmp_path, random_weights):
    path, _ = random_weights
    before, after = pictures(0, [(64, 64)] * 8), pictures(1, [(64, 64)] * 8)
    original, erased = image_set(tmp_path / "o", before), image_set(tmp_path / "e", after)
    some = image_set(tmp_path / "s", after, failed=(1,))
    for evaluator in (LPIPS(weights=str(path), sizes=[64], batch_size=8), LayerDistance(features=EmojiJudge())):
        whole = {s.prompt_id: s for s in evaluator.score(erased, original)}
        found = {s.prompt_id: s for s in evaluator.score(some, original)}
        assert found["p1"].status == "nan" and math.isnan(found["p1"].value)
        for name in set(whole) - {"p1"}:
            assert found[name].value == pytest.approx(whole[name].value, rel=1e-4)


def test_a_network_gone_wrong_gives_no_number(tmp_path):
    class Broken(EmojiJudge):
        def layers(self, images):
            return [torch.full((len(images), 2, 1, 1), math.nan)]

    images = image_set(tmp_path / "o", pictures(0, [(64, 64)] * 3))
    scores = LayerDistance(features=Broken()).score(images, images)
    assert {(s.status, math.isnan(s.value)) for s in scores} == {("error", True)}


def test_layers_of_the_embedded_judge_are_those_its_features_come_from():
    images = pictures(2, [(64, 64)] * 3)
    layers = EmojiJudge().layers(images)
    assert len(layers) == 6 and all((layer >= 0).all() for layer in layers)
    np.testing.assert_allclose(layers[-1].mean((2, 3)).numpy(), EmojiJudge().features(images), rtol=1e-5)


def test_what_cannot_be_used_is_refused_early(tmp_path):
    with pytest.raises(ValueError, match=r"existing .safetensors file.*convert alexnet"):
        LPIPS(weights=str(tmp_path / "alexnet.pth"))
    with pytest.raises(ValueError, match="sides >= 64 and full"):
        LPIPS(sizes=[32])
    save_file({"features.0.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError, match=r"must hold torchvision's AlexNet, features.0.weight \[64, 3, 11, 11\]; got \[2\]"
    ):
        LPIPS(weights=str(tmp_path / "x.safetensors")).check()
    with pytest.raises(ValueError, match=r"must show its layers.*evaluator=\[lpips\]"):
        LayerDistance(features=Inception()).check()


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch):
    from erasebench.judges import perceptual

    def offline(*args, **kwargs):
        raise OSError("no network")

    perceptual.alexnet.cache_clear()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(OSError, match=r"connect once, or fetch https.*evaluator.lpips.weights=alexnet.safetensors"):
        perceptual.alexnet(None, "cpu")
