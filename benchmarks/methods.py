"""Cost of one training step at the exact shape of Stable Diffusion 1.4, beside the straightforward way.

    python -m benchmarks.methods [--precision bfloat16] [--latents 32] [--drawing 2 8] [--exact] [--threads 2]

The straightforward way asks the UNet for one text at a time: two calls for each guided DDIM step, one for each branch
of the loss, and in EAP's second step the branch of the erased concept, whose gradient reaches nothing. In bfloat16 it
has ``torch.autocast`` around every call. Both ways get the same random numbers, and their losses and gradients are
compared; with ``--exact``, each with those of the straightforward way in float32. The optimiser's update, the same for
both, is not counted.

The UNet has Stable Diffusion 1.4's architecture (859.5 M parameters) and random weights. A latent is drawn in 25.5
DDIM steps on average; ``--drawing`` says after how many the measured ones stop, and the cost at 25.5 is read off the
straight line through them. The paper's latents are 64 x 64; smaller ones take less time to measure, and less of it is
arithmetic, which batches do not spare. CPU seconds add up all threads: on a machine that is busy with other work they
are the fairer figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler

from benchmarks.erase import Meter, sd14_shape
from erasebench.types import Concept, Pipeline
from methods.all_but_one import AllButOne
from methods.ca import CA
from methods.eap import EAP
from methods.esd import ESD
from methods.fine_tuning import FineTuning, student
from methods.on_policy import Denoiser
from methods.precision import Autocast
from methods.training_images import Picture

MEAN = 25.5  # DDIM steps
CHURCH = Concept(name="church", phrases=("church",))
WORDS = ("tower", "house", "tree", "dog")


def filled(latents: int, device: str) -> Pipeline:
    """The pipeline of Stable Diffusion 1.4's shape with every weight of its UNet random and of sensible size."""
    pipe = sd14_shape()
    for name, p in pipe.unet.named_parameters():
        p.normal_(std=p[0].numel() ** -0.5) if p.dim() > 1 else p.fill_(float("norm" in name and "weight" in name))
    pipe.unet.register_to_config(sample_size=latents)
    return pipe.to(device)


def trained(pipe: Pipeline, method: FineTuning, half: Pipeline | None = None) -> tuple[Any, list[torch.Tensor]]:
    """What the method trains, a little way from the original, so that no loss is zero; the same in every call."""
    unet, weights = student(pipe, method.layers, half)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights.values():
            away = torch.randn(weight.shape, generator=draw).to(weight.device)
            weight.add_(away, alpha=0.1 * weight.shape[-1] ** -0.5)
    return unet, list(weights.values())


class Plain:
    """A model asked for one latent and one text at a time."""

    def __init__(self, pipe: Pipeline, model: Denoiser, autocast: bool) -> None:
        self.model, self.unet, self.autocast = model, pipe.unet, autocast
        self.scheduler = DDIMScheduler.from_config(
            model.pipe.scheduler.config, set_alpha_to_one=False, timestep_spacing="leading", steps_offset=1
        )
        self.scheduler.set_timesteps(model.steps)

    def text(self, word: str) -> torch.Tensor:
        return self.model.encode([word]).states

    def ask(self, unet: Any, z: torch.Tensor, t: int, text: torch.Tensor) -> torch.Tensor:
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.autocast):
            out = unet(z, torch.tensor([t], device=z.device), encoder_hidden_states=text, return_dict=False)[0]
        return out.float()

    @torch.no_grad()
    def drawn(self, unet: Any, draw: Any, text: torch.Tensor) -> torch.Tensor:
        z = self.model.noise([draw.generator])
        for t in self.scheduler.timesteps[1 : self.model.steps - max(draw.stage - 1, 0)]:
            empty, given = self.ask(unet, z, int(t), self.text("")), self.ask(unet, z, int(t), text)
            z = self.scheduler.step(empty + self.model.guidance_scale * (given - empty), t, z).prev_sample
        return z

    def erase_loss(self, unet: Any, draw: Any, eta: float, scale: float) -> torch.Tensor:
        text = self.text(draw.word)
        z = self.drawn(unet, draw, text)
        with torch.no_grad():
            e, e_text = (self.ask(self.unet, z, draw.timestep, other) for other in (self.text(""), text))
        difference = self.ask(unet, z, draw.timestep, text) - (e - eta * (e_text - e))
        return scale * difference.square().mean()

    def keep_loss(self, unet: Any, draw: Any, text: torch.Tensor, scale: float) -> torch.Tensor:
        z = self.drawn(unet, draw, text.detach())
        with torch.no_grad():
            kept = self.ask(self.unet, z, draw.timestep, text.detach())
        return scale * (self.ask(unet, z, draw.timestep, text) - kept).square().mean()


Found = list[torch.Tensor]  # of a step: its loss, then its gradients
Step = Callable[[], Found]


def esd_steps(pipe: Pipeline, autocast: Autocast, stage: int) -> dict[str, list[Step]]:
    """ESD's step in the plain way, in this repository's and, to compare with, in the plain way in float32."""
    method = ESD(autocast=autocast)
    model = method.denoiser(pipe)
    unet, weights = trained(pipe, method, model.half)
    whole, same = trained(pipe, method)

    def draws() -> list[Any]:
        return at_stage(method.draws(model, CHURCH, 0), stage)

    def ours() -> Found:
        return found(method.loss(model, unet, draws()), weights)

    def straightforward(half: bool) -> Found:
        return found(Plain(pipe, model, half).erase_loss(whole, draws()[0], method.eta, 1.0), same)

    return {
        "one by one": [lambda: straightforward(bool(autocast))],
        "here": [ours],
        "float32": [lambda: straightforward(False)],
    }


def eap_steps(pipe: Pipeline, autocast: Autocast, stage: int) -> dict[str, list[Step]]:
    """EAP's two steps, of the weights and of the choice."""
    method = EAP(pool=WORDS, autocast=autocast)
    model = method.denoiser(pipe)
    unet, weights = trained(pipe, method, model.half)
    whole, same = trained(pipe, method)
    pools = {"church": method.candidates(model, "church", CHURCH)}
    logits = [pools["church"].logits]
    alpha = float(model.level([model.timesteps[stage]]))
    scale = (1 - alpha) / alpha

    def draws() -> list[Any]:
        return at_stage(method.draws(model, pools, 0), stage)

    def branches(half: bool) -> tuple[torch.Tensor, torch.Tensor]:
        plain, text = Plain(pipe, model, half), method.chosen(pools, draws()).states
        erase = plain.erase_loss(whole, draws()[0], method.eta, scale)
        return erase, plain.keep_loss(whole, draws()[0], text, scale)

    def straightforward(half: bool) -> list[Step]:
        return [lambda: found(sum(branches(half), torch.zeros(())), same), lambda: found(-branches(half)[1], logits)]

    return {
        "one by one": straightforward(bool(autocast)),
        "here": [
            lambda: found(method.weights_loss(model, unet, pools, draws()), weights),
            lambda: found(method.concept_loss(model, unet, pools, draws()), logits),
        ],
        "float32": straightforward(False),
    }


def all_but_one_steps(pipe: Pipeline, autocast: Autocast, stage: int) -> dict[str, list[Step]]:
    """All but One's step."""
    method = AllButOne(autocast=autocast)
    model = method.denoiser(pipe)
    unet, weights = trained(pipe, method, model.half)
    whole, same = trained(pipe, method)

    def draws() -> list[Any]:
        return at_stage(method.stages(model, ["church"], 0), stage)

    def straightforward(half: bool) -> Found:
        plain, draw = Plain(pipe, model, half), draws()[0]
        text, empty, t = plain.text("church"), plain.text(""), draw.timestep
        z = plain.drawn(whole, draw, text)
        with torch.no_grad():
            pinned, towards = plain.ask(pipe.unet, z, t, empty), plain.ask(pipe.unet, z, t, plain.text("field"))
        alone = plain.ask(whole, z, t, empty)
        turned = plain.ask(whole, z, t, text) - alone - (towards - pinned)
        return found(turned.square().mean() + (alone - pinned).square().mean(), same)

    return {
        "one by one": [lambda: straightforward(bool(autocast))],
        "here": [lambda: found(method.loss(model, unet, {"church": "field"}, draws()), weights)],
        "float32": [lambda: straightforward(False)],
    }


def ca_steps(pipe: Pipeline, autocast: Autocast, stage: int) -> dict[str, list[Step]]:
    """Concept ablation's step, of four pictures that are noise; nothing is drawn, so that ``stage`` says nothing."""
    method, draw = CA(autocast=autocast), torch.Generator().manual_seed(1)
    model = method.denoiser(pipe)
    unet, weights = trained(pipe, method, model.half)
    whole, same = trained(pipe, method)
    pictures = [Picture("a field", "a church", torch.randn(model.shape, generator=draw)) for _ in range(4)]

    def straightforward(half: bool) -> Found:
        plain, few = Plain(pipe, model, half), method.noised(model, pictures, 0)
        total = torch.zeros(())
        for z, t in zip(few.z.split(1), few.timesteps, strict=True):
            with torch.no_grad():
                goal = plain.ask(whole, z, t, plain.text("a field"))
            total = total + (plain.ask(whole, z, t, plain.text("a church")) - goal).square().mean() / len(few.z)
        return found(total, same)

    return {
        "one by one": [lambda: straightforward(bool(autocast))],
        "here": [lambda: found(method.loss(model, unet, pictures, 0), weights)],
        "float32": [lambda: straightforward(False)],
    }


STEPS = {"esd": esd_steps, "eap": eap_steps, "all_but_one": all_but_one_steps, "ca": ca_steps}


def found(loss: torch.Tensor, inputs: Sequence[torch.Tensor]) -> Found:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def at_stage(draws: Sequence[Any], stage: int) -> list[Any]:
    """The same draws with latents that are drawn as far as asked for, and a timestep that belongs there."""
    return [draw._replace(stage=stage, timestep=20 * stage + draw.timestep % 20) for draw in draws]


def measured(ways: dict[str, Sequence[Step]], repeats: int) -> tuple[dict[str, Any], dict[str, list[Found]]]:
    """Fewest seconds, fewest CPU seconds and most extra megabytes of each way, taken in turn, and what it found."""
    meters, values = {way: [] for way in ways}, {}
    for _ in range(repeats):
        for way, steps in ways.items():
            values[way] = []
            with Meter() as meter:
                values[way] += [step() for step in steps]
            meters[way].append(meter)
    costs = {
        way: (min(m.seconds for m in some), min(m.cpu for m in some), max(m.megabytes for m in some))
        for way, some in meters.items()
    }
    return costs, values


def differences(some: Sequence[Found], other: Sequence[Found]) -> str:
    """The largest relative differences of two ways' losses and gradients over their steps."""

    def relative(part: slice) -> float:
        pairs = [
            [torch.cat([x.flatten() for x in way[part]]) for way in both] for both in zip(some, other, strict=True)
        ]
        return max(float((a - b).norm() / b.norm()) for a, b in pairs)

    return f"relative difference of losses {relative(slice(1)):.1e}, of gradients {relative(slice(1, None)):.1e}"


def report(name: str, make: Callable[[int], dict[str, list[Step]]], options: argparse.Namespace) -> None:
    points: dict[str, list[tuple[float, float, float]]] = {"one by one": [], "here": []}
    for drawing in options.drawing:
        ways = make(FineTuning().steps - drawing)
        costs, values = measured({way: ways[way] for way in points}, options.repeats)
        for way, (seconds, cpu, extra) in costs.items():
            points[way].append((drawing, seconds, cpu))
            label = f"{name}, {drawing} DDIM steps, {way}"
            print(f"{label:48}{seconds:10.1f}{cpu:10.1f}{extra:10.0f}", flush=True)
        faster = [points["one by one"][-1][i] / points["here"][-1][i] for i in (1, 2)]
        print(f"{'':48}{faster[0]:9.2f}x{faster[1]:9.2f}x", flush=True)
        print(f"  here and one by one: {differences(values['here'], values['one by one'])}", flush=True)
        if options.exact:
            exact = [step() for step in ways["float32"]]
            for way in points:
                print(f"  {way} and float32: {differences(values[way], exact)}", flush=True)
    if len(options.drawing) > 1:
        for column, unit in ((1, "seconds"), (2, "CPU seconds")):
            way = {k: fitted(p, column) for k, p in points.items()}
            ratio = way["one by one"] / way["here"]
            print(f"{name}, {MEAN} DDIM steps: {way['one by one']:.0f} -> {way['here']:.0f} {unit}, {ratio:.2f}x")


def fitted(points: Sequence[tuple[float, float, float]], column: int) -> float:
    slope, start = np.polyfit([p[0] for p in points], [p[column] for p in points], 1)
    return float(start + slope * MEAN)


@torch.no_grad()
def warm(pipe: Pipeline, model: Denoiser, rows: int) -> None:
    plain, z = Plain(pipe, model, model.half is not None), model.noise([torch.Generator() for _ in range(rows)])
    if rows == 1:
        plain.ask(pipe.unet, z, 500, plain.text("church"))
    else:
        model.epsilon(model.pipe.unet, z, [500] * rows, model.encode(["church"] * rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, default=32, help="latents per side; the paper's model has 64")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--drawing", type=int, nargs="+", default=[2, 8], help="DDIM steps, 1 to 49")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--method", nargs="+", choices=list(STEPS), default=["esd", "eap"])
    parser.add_argument("--exact", action="store_true", help="compare both ways with float32 too, which is not timed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipe = filled(options.latents, options.device)
    autocast: Autocast = options.precision == "bfloat16" and ("cpu" if options.device == "cpu" else True)
    size = f"latents {options.latents} x {options.latents}, {options.precision}"
    print(f"{size}, {options.threads} threads, torch {torch.__version__}, best of {options.repeats}")
    for rows in (1, 2):  # once in vain, for what is allocated and chosen then
        warm(pipe, ESD(autocast=autocast).denoiser(pipe), rows)
    print(f"{'a step: loss and gradients':48}{'seconds':>10}{'CPU s':>10}{'extra MB':>10}")
    for name in options.method:
        report(name, partial(STEPS[name], pipe, autocast), options)


if __name__ == "__main__":
    main()
