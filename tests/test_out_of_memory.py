"""Without memory a batch is halved wherever there is one: attacks, encoders, judges; results stay what they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from attacks.p4d import P4D
from attacks.ringabell import Space
from attacks.side_by_side import Batch
from attacks.unlearndiffatk import UnlearnDiffAtk
from erasebench import devices, diffusion
from erasebench.diffusion import encoding
from erasebench.judges import clip, inception
from erasebench.types import Concept
from methods import fine_tuning, receler
from methods.advanchor import AdvAnchor
from methods.advunlearn import AdvUnlearn
from methods.age import AGE
from methods.all_but_one import AllButOne
from methods.ca import CA
from methods.crce import CRCE
from methods.degeneration_tuning import DegenerationTuning
from methods.doco import DoCo
from methods.duge import DUGE
from methods.eap import EAP
from methods.esd import ESD
from methods.fine_tuning import Training
from methods.fmn import FMN
from methods.kpop import KPOP
from methods.mace import MACE
from methods.modular_lora import ModularLora
from methods.receler import Receler
from methods.salun import SalUn
from methods.sdd import SDD
from methods.sepme import SepME
from methods.spm import SPM
from tests.white_box import CAT, PROMPTS, SAMPLER, Brightness, blinded

FULL = "CUDA out of memory. Tried to allocate 2 GiB."


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(devices, "_room", {})


def most(work, limit, asked, size=len):
    """``work`` on a device that has memory for ``limit`` at once."""

    def limited(*args, **more):
        asked.append(size(*args))
        if asked[-1] > limit:
            raise torch.OutOfMemoryError(FULL)
        return work(*args, **more)

    return limited


def test_halves_until_it_fits_in_order_and_remembers(caplog):
    asked = []
    made = list(devices.halving(most(list, 2, asked), list(range(7)), 7, "things", "cuda:0"))
    assert [n for part in made for n in part] == list(range(7)) and asked == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert "out of memory with 7 things at once; going on with 3" in caplog.text
    asked.clear()
    list(devices.halving(most(list, 9, asked), [1, 2], 7, "things", "cuda:0"))
    list(devices.halving(most(list, 9, asked), [1, 2], 7, "things", "cuda:1"))
    assert asked == [1, 1, 2]  # remembered for that device


def test_one_that_does_not_fit_and_other_errors_are_raised():
    with pytest.raises(torch.OutOfMemoryError):
        list(devices.halving(most(list, 0, []), [1, 2], 2, "things"))

    def wrong(batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(devices.halving(wrong, [1, 2], 2, "things"))


@pytest.mark.parametrize("attack", [UnlearnDiffAtk, P4D])
def test_a_search_that_fails_in_the_middle_of_a_round_ends_as_if_it_had_not(make_pipe, monkeypatch, attack, caplog):
    """The second step of the first round fails, after rows and moments have moved: they are put back."""
    pipe = make_pipe(dtype=torch.float64)
    erased = blinded(pipe)
    made = attack(**{**SAMPLER, "timesteps": (10, 500), "iterations": 3})
    plain = made.attack(erased, pipe, PROMPTS, CAT, Brightness())
    whole, calls = Batch.predict, []

    def limited(self, x_t, t, tokens):
        calls.append(len(self.slots))
        if len(self.slots) > 1 and calls.count(len(self.slots)) > 1:
            raise torch.OutOfMemoryError(FULL)
        return whole(self, x_t, t, tokens)

    monkeypatch.setattr(Batch, "predict", limited)
    found = made.attack(erased, pipe, PROMPTS, CAT, Brightness())
    assert calls[0] == 3 and calls[-1] == 1 and "prompts of" in caplog.text
    assert [p.text for p in found] == [p.text for p in plain]
    for a, b in zip(found, plain, strict=True):
        assert {k: a.info[k] for k in ("forward", "backward", "queries")} == {
            k: b.info[k] for k in ("forward", "backward", "queries")
        }
        assert a.info["loss"] == pytest.approx(b.info["loss"], rel=1e-6)


def test_texts_and_sequences(tiny_pipe, monkeypatch):
    texts, asked = [f"cat {i}" for i in range(5)], []
    want = diffusion.encode(tiny_pipe, texts)
    monkeypatch.setattr(
        encoding, "encode_batch", most(encoding.encode_batch, 2, asked, lambda pipe, batch, *_: len(batch))
    )
    torch.testing.assert_close(diffusion.encode(tiny_pipe, texts), want, rtol=1e-4, atol=1e-5)
    assert max(asked) == 5 and asked[-1] <= 2
    space = Space.of(tiny_pipe, 4, None)
    people, goal = np.random.default_rng(0).choice(space.allowed, (5, 4)), want[0]
    plain, asked = space.losses(people, goal, 5), []
    devices._room.clear()
    monkeypatch.setattr(type(space), "sequences", most(type(space).sequences, 2, asked, lambda self, p, *_: len(p)))
    np.testing.assert_allclose(space.losses(people, goal, 5), plain, rtol=1e-5)
    assert asked[0] == 5 and asked[-1] <= 2


def test_networks_that_look_at_images(monkeypatch):
    pictures = [Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)) for i in range(5)]
    asked = []

    def work(batch):
        return torch.tensor([[float(np.asarray(image).mean()), 1.0] for image in batch])

    want = clip._unit(work, pictures, 5, "images for CLIP")
    np.testing.assert_array_equal(clip._unit(most(work, 1, asked), pictures, 5, "images for CLIP"), want)
    assert asked[0] == 5 and asked[-1] == 1
    asked = []
    network = most(lambda x: (128 * x.mean((1, 2, 3)) + 128)[:, None].expand(-1, 2048), 2, asked)
    monkeypatch.setattr(inception, "_network", lambda *_: network)
    found = inception.Inception(device="cpu", batch_size=4).features(pictures)
    np.testing.assert_allclose(found[:, 0], [40 * i for i in range(5)], rtol=1e-5)
    assert asked[0] == 4 and max(asked[1:]) <= 2


def test_a_training_s_gradients_are_added_up_over_halves():
    """Plain gradient descent in float64 on a mean over five rows of uneven parts, beside the whole batch."""
    x = torch.arange(10, dtype=torch.float64).view(5, 2).sin()

    def trained(limit):
        weight, asked = torch.nn.Parameter(torch.ones(2, dtype=torch.float64)), []
        unused = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

        def loss(step, places):
            asked.append(len(places))
            if len(places) > limit:
                raise torch.OutOfMemoryError(FULL)
            return ((x[places.start : places.stop] @ weight - step) ** 2).mean()

        sgd = torch.optim.SGD([weight, unused], lr=0.1)
        state = {"weight": weight, "unused": unused}
        Training(name="t", identity=str(limit), iterations=3, optimisers={"a": sgd}, state=state).run(loss, rows=5)
        devices._room.clear()
        return weight.detach(), asked

    whole, asked = trained(5)
    assert asked == [5, 5, 5]
    halves, asked = trained(2)
    assert asked == [5, 2, 2, 1, 2, 2, 1, 2, 2, 1]
    torch.testing.assert_close(halves, whole, rtol=1e-13, atol=0)
    with pytest.raises(torch.OutOfMemoryError):
        trained(0)


def test_esd_goes_on_with_fewer_latents_of_the_same_noise(tiny_pipe, monkeypatch, caplog):
    """Each part draws its own latents from the same random numbers as the whole batch did."""
    method = ESD(iterations=1, steps=4, batch_size=3, layers="xattn_strict", autocast=False)
    seen, real = [], ESD.loss

    def limited(self, model, unet, draws):
        if len(draws) > 2:
            raise torch.OutOfMemoryError(FULL)
        seen.append([(draw.word, draw.stage, draw.timestep, draw.generator.initial_seed()) for draw in draws])
        return real(self, model, unet, draws)

    whole = diffusion.changed_tensors(method.erase(tiny_pipe, CAT), tiny_pipe)
    monkeypatch.setattr(ESD, "loss", limited)
    parts = diffusion.changed_tensors(method.erase(tiny_pipe, CAT), tiny_pipe)
    model = method.denoiser(tiny_pipe)
    drawn = [(d.word, d.stage, d.timestep, d.generator.initial_seed()) for d in method.draws(model, CAT, 0)]
    assert [len(part) for part in seen] == [1, 1, 1] and [one for part in seen for one in part] == drawn
    assert "out of memory with 3 latents of esd's steps at once; going on with 1" in caplog.text
    assert parts.keys() == whole.keys()
    far = torch.cat([(parts[name] - whole[name]).abs().flatten() for name in whole])
    assert (
        far > 0.1 * method.lr
    ).float().mean() < 0.02  # Adam's first step is lr times a sign, but where it is rounding


@pytest.fixture(scope="module")
def double_pipe(make_pipe):
    return make_pipe(dtype=torch.float64)


OTHERS = {
    AdvAnchor: {"images": 2, "inner_steps": 1},
    AdvUnlearn: {"attack_steps": 1, "retain_batch": 4, "warm_up": 0},
    AGE: {"pool": ["dog", "sun", "owl"], "closest": 3, "centres": 3},
    AllButOne: {},
    CA: {"images": 2, "prior_weight": 0.5},
    CRCE: {"coreferents": {"kitten": 1.0}, "retain": {"dog": 0.5, "sun": 1.0}},
    DegenerationTuning: {"images": 2},
    DoCo: {"images": 2, "warm_up": 1, "prior_weight": 0.5},
    DUGE: {"images": 2},
    EAP: {"pool": ["dog", "sun", "owl"], "closest": 3, "centres": 3},
    FMN: {"images": 2},
    KPOP: {},
    MACE: {"images": 2},
    ModularLora: {"images": 2, "tuned": "apart", "tuning_iterations": 1},
    Receler: {"attack_steps": 2},
    SalUn: {"images": 2},
    SDD: {},
    SepME: {"images": 2, "pads": 0, "concept_others": False},
    SPM: {"anchors": 2, "warm_up": 1},
}


@pytest.mark.parametrize("method", OTHERS, ids=lambda method: method.__name__)
def test_every_training_goes_on_with_the_same_gradients(double_pipe, monkeypatch, caplog, method):
    """Two updates with memory for one latent, beside the whole batch of three, in float64."""
    pipe = double_pipe
    concept = Concept(name="cat", phrases=("cat",), anchor="dog", neighbours={"near": ("dog",)})
    common = {"iterations": 2, "steps": 2, "batch_size": 3, "guidance_scale": 1.0}
    made = method(
        **{key: value for key, value in (common | OTHERS[method]).items() if key in method.__dataclass_fields__}
    )
    whole, real, asked = made.erase(pipe, concept), fine_tuning.slopes, []

    def limited(loss, parameters, rows, what):
        return real(most(loss, 1, asked), parameters, rows, what)

    monkeypatch.setattr(fine_tuning, "slopes", limited)
    monkeypatch.setattr(receler, "slopes", limited)
    parts = made.erase(pipe, concept)
    assert max(asked) >= 3 and asked.count(1) >= 6 and "latents of" in caplog.text and "going on with 1" in caplog.text
    found, before = tensors(parts, pipe), tensors(whole, pipe)
    assert found.keys() == before.keys() != set()
    for name, tensor in before.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def tensors(erased, original):
    beside = {f"{i}.{n}": t for i, one in enumerate(getattr(erased, "adapters", ())) for n, t in one.tensors.items()}
    return diffusion.changed_tensors(erased, original) | beside
