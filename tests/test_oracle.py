"""The models that never knew: small differences that restore what was stored, a refusal that names what there is."""

import pytest
import torch
from safetensors.torch import save_file

from erasebench import diffusion
from erasebench.diffusion import differences
from erasebench.diffusion.headers import folder_shapes
from erasebench.store.files import locate
from erasebench.types import Concept
from methods.oracle import Oracle

CAT, DOG = (Concept(name=name, phrases=(name,), anchor="bear") for name in ("cat", "dog"))
SHIPPED = "pkg:erasebench/emoji/oracles"


@pytest.mark.parametrize(("bits", "error"), [(3, 0.22), (4, 0.11), (8, 0.01)])
def test_a_difference_comes_back_to_within_its_rounding(bits, error):
    g = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(64, 96, generator=g), "conv": torch.randn(8, 8, 3, 3, generator=g), "b": torch.zeros(5)}
    new = {k: v + 0.1 * torch.randn(v.shape, generator=g) for k, v in base.items()}
    stored = differences.pack(new, base, bits)
    back = differences.unpack(stored, base)
    for k in base:
        assert (back[k] - new[k]).norm() <= error * (new[k] - base[k]).norm()
    size = sum(v.numel() * v.element_size() for v in stored.values())
    assert size <= (bits + 0.4) / 8 * sum(v.numel() for v in base.values()) + 20


def test_equal_tensors_are_not_stored_and_another_base_is_refused():
    base = {"w": torch.ones(64, 2)}
    assert differences.pack(base, base) == {}
    stored = differences.pack({"w": torch.zeros(64, 2)}, base)
    with pytest.raises(ValueError, match="tensor w of a difference must fit"):
        differences.unpack(stored, {"w": torch.ones(64, 4)})


def test_only_the_unet_changes_and_the_pipeline_stays(tmp_path, tiny_pipe):
    name = "conv_in.weight"
    old = {name: tiny_pipe.unet.state_dict()[name].clone()}
    save_file(differences.pack({name: old[name] + 1}, old, 8), tmp_path / "cat.safetensors")
    method = Oracle(folder=str(tmp_path))
    method.check(CAT, {})
    erased = method.erase(tiny_pipe, CAT)
    assert torch.allclose(erased.unet.state_dict()[name], old[name] + 1, atol=0.01)
    assert torch.equal(tiny_pipe.unet.state_dict()[name], old[name])
    assert set(diffusion.changed_tensors(erased, tiny_pipe)) == {f"unet.{name}"}


def test_concepts_without_an_oracle_are_refused_with_those_that_have_one(tmp_path):
    with pytest.raises(ValueError, match="got 'cat'; these have one: no concept has"):
        Oracle(folder=str(tmp_path)).check(CAT, {})
    with pytest.raises(ValueError, match="got 'dog'; these have one: apple, car, cat, gun, ink, sun"):
        Oracle(folder=SHIPPED).check(DOG, {})


def test_another_model_is_refused_by_headers_alone():
    shapes = {edition: folder_shapes(locate(f"pkg:erasebench/emoji/{edition}")) for edition in ("weights", "weights2")}
    Oracle(folder=SHIPPED).check(CAT, shapes["weights2"])
    Oracle(folder=SHIPPED).check(CAT, {})  # a model that is not on this disk
    with pytest.raises(ValueError, match=r"got one whose UNet has another tensor conv_(in|out)\S+; choose that model"):
        Oracle(folder=SHIPPED).check(CAT, shapes["weights"])


def test_shipped_oracles_fit_the_shipped_model():
    from erasebench.emoji.training import parts

    shapes = {k: v.shape for k, v in parts.unet(16).state_dict().items()}
    base = {k: torch.zeros(s) for k, s in shapes.items()}
    from safetensors.torch import load_file

    files = sorted(locate(SHIPPED).glob("*.safetensors"))
    assert len(files) == 6 and sum(f.stat().st_size for f in files) < 12e6
    new = differences.unpack(load_file(files[0]), base)
    assert set(new) == set(base) and all(new[k].shape == shapes[k] for k in new)
