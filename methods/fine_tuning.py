"""What erasures by fine-tuning share: which weights they train, and a loop that may be watched, killed and resumed.

Names of the layer sets are the papers'; CompVis' names of parts map to diffusers' as ``out.`` -> ``conv_norm_out`` and
``conv_out``, ``time_embed`` -> ``time_embedding`` (the projections of the time embedding inside every residual block
are something else, and are trained by ``noxattn`` and ``notime``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from erasebench import fields, progress
from erasebench.devices import halving
from erasebench.diffusion import apply_tensors, fork
from erasebench.store import workspace
from erasebench.types import Concept, Pipeline, seed_of
from methods.on_policy import Denoiser
from methods.precision import Autocast, check_autocast

Rows = TypeVar("Rows", list[Any], Tensor)  # one entry, or row, for each latent of a step
Layers = Literal["xattn", "xattn_strict", "noxattn", "noxattn_v2", "selfattn", "notime", "full"]
OUTER = ("conv_norm_out.", "conv_out.", "time_embedding.")  # CompVis: out. and time_embed.
SAVE_SECONDS = 60.0  # least time between two checkpoints; results do not depend on it
SAVE_SHARE = 0.05  # and at most this share of the time goes into writing them


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Fields of every erasure by fine-tuning.

    Args:
        layers: parameters of the UNet that are trained:
            ``xattn`` all of every cross-attention ``attn2`` (query, key, value, output and its bias); ``xattn_strict``
            its keys and values only; ``noxattn`` all but ``attn2``, ``conv_norm_out``, ``conv_out`` and
            ``time_embedding``; ``noxattn_v2`` linear and convolution layers outside ``attn2``, no normalisation;
            ``selfattn`` all of every ``attn1``; ``notime`` all but ``conv_norm_out``, ``conv_out`` and
            ``time_embedding``; ``full`` all.
        iterations: updates of the weights, >= 1.
        lr: learning rate > 0.
        batch_size: latents per update, >= 1; the papers' is 1.
        guidance_scale: of the classifier-free guidance that draws the training latents.
        steps: DDIM steps of a whole drawing, >= 2; training latents are drawn part of the way.
        phrases: erase the ``name`` (the concept's first phrase) or ``all`` its phrases.
        seed: everything random depends on it, the step and the place in the batch, >= 0.
        autocast: bfloat16 inside the networks (trained weights, losses and the optimiser stay float32), on a GPU only
            (True), on a CPU too (``cpu``, refused where the processor has no bfloat16) or nowhere (False).

    Raises:
        ValueError: a value out of its range, before any weight is loaded.

    >>> FineTuning(layers="attn3")
    Traceback (most recent call last):
    ValueError: layers must be one of xattn, xattn_strict, ..., full; got 'attn3'; did you mean xattn?
    """

    layers: Layers = "xattn"
    iterations: int = 1000
    lr: float = 1e-5
    batch_size: int = 1
    guidance_scale: float = 3.0
    steps: int = 50
    phrases: Literal["name", "all"] = "name"
    seed: int = 0
    autocast: Autocast = True

    together: ClassVar[tuple[str, ...]] = ("joint", "sequence")
    layer_sets: ClassVar[tuple[str, ...]] = get_args(Layers)

    def __post_init__(self) -> None:
        fields.choice("layers", self.layers, self.layer_sets)
        fields.choice("phrases", self.phrases, ("name", "all"))
        for name, least in (("iterations", 1), ("batch_size", 1), ("steps", 2), ("seed", 0)):
            fields.integer(name, getattr(self, name), least=least)
        fields.number("lr", self.lr, above=0)
        fields.number("guidance_scale", self.guidance_scale)
        check_autocast(self.autocast)

    def words(self, concept: Concept) -> tuple[str, ...]:
        """The texts to erase: of every concept, where several are erased jointly."""
        many = None if self.phrases == "all" else 1
        return tuple(phrase for part in concept.singles for phrase in part.phrases[:many])

    def denoiser(self, pipe: Pipeline) -> Denoiser:
        """What draws and asks the pipeline's models, with these settings."""
        return Denoiser(pipe, steps=self.steps, guidance_scale=self.guidance_scale, autocast=self.autocast)

    def training(
        self,
        concept: Concept,
        state: Mapping[str, Tensor],
        *,
        iterations: int | None = None,
        clip: float | None = None,
        **optimisers: torch.optim.Optimizer,
    ) -> Training:
        """The loop of this method on a concept; by default ``iterations`` updates of ``state`` by Adam at ``lr``."""
        return Training(
            name=type(self).__module__.rpartition(".")[2],
            identity=f"{self!r} {concept!r}",
            iterations=self.iterations if iterations is None else iterations,
            optimisers=optimisers or {"weights": torch.optim.Adam(state.values(), lr=self.lr)},
            state=state,
            clip=clip,
        )

    def generators(self, step: int) -> list[torch.Generator]:
        """A generator for each latent of a step; none depends on the batch size."""
        return [generator(self.seed, step, row) for row in range(self.batch_size)]


def at(places: range, rows: Rows) -> Rows:
    """The rows at some places, of a list or a tensor."""
    return rows[places.start : places.stop]


def layer_names(unet: nn.Module, layers: Layers) -> list[str]:
    """Names of the parameters of a layer set, in the order of ``unet.named_modules()``.

    Raises:
        ValueError: the UNet has no such parameter.
    """

    def chosen(name: str, module: nn.Module) -> bool:
        cross, outer = ".attn2." in name, name.startswith(OUTER)
        return {
            "xattn": cross,
            "xattn_strict": cross and (".to_k." in name or ".to_v." in name),
            "noxattn": not cross and not outer,
            "noxattn_v2": not cross and isinstance(module, nn.Linear | nn.Conv2d),
            "selfattn": ".attn1." in name,
            "notime": not outer,
            "full": True,
        }[layers]

    found = [
        name
        for path, module in unet.named_modules()
        for name in (f"{path}.{leaf}" for leaf, _ in module.named_parameters(recurse=False))
        if chosen(name, module)
    ]
    if not found:
        raise ValueError(f"layers {layers} must be in the UNet; found none there; choose another set of layers")
    return found


def student(pipe: Pipeline, layers: Layers, half: Pipeline | None = None) -> tuple[Any, dict[str, nn.Parameter]]:
    """A UNet that shares all but the parameters of a layer set with ``pipe``, and these: float32 or float64 copies.

    With ``half`` (``Denoiser.half``) it shares the others with that, for use inside its denoiser's autocast.

    A UNet in half precision is copied to float32, for updates of 1e-5 vanish in half precision. On a GPU gradients are
    checkpointed: activations are computed again for the backward pass, which changes memory and not the result.
    """
    unet = frozen(pipe, half)
    trained = {}
    for name in layer_names(unet, layers):
        path, _, leaf = name.rpartition(".")
        weight = pipe.unet.get_parameter(name).detach()
        trained[name] = nn.Parameter(weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True))
        setattr(unet.get_submodule(path), leaf, trained[name])
    return unet, trained


def frozen(pipe: Pipeline, half: Pipeline | None = None) -> Any:
    """A UNet that shares every tensor with ``pipe`` or ``half`` and lets gradients through; see :func:`student`."""
    unet = fork(half or pipe).unet.requires_grad_(False)
    if half is None and unet.dtype in (torch.float16, torch.bfloat16):
        unet.float()
    if unet.device.type == "cuda":
        unet.enable_gradient_checkpointing()
    return unet


def with_weights(pipe: Pipeline, trained: Mapping[str, Tensor]) -> Pipeline:
    """``pipe`` with parameters of its UNet replaced, in its own dtype; ``pipe`` itself is left as it is."""
    return apply_tensors(pipe, {f"unet.{name}": weight for name, weight in trained.items()})


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded with a key and nothing else.

    >>> a, b, c = (torch.rand(2, generator=generator(0, "noise", step)) for step in (1, 1, 2))
    >>> torch.equal(a, b), torch.equal(a, c)
    (True, False)
    """
    return torch.Generator().manual_seed(seed_of(repr(key)) >> 8)


def uniform(low: int, high: int, draw: torch.Generator) -> int:
    """An integer, uniform over low <= i < high."""
    return int(torch.randint(low, high, (1,), generator=draw))


Gradients = list[Tensor | None]  # one for each parameter; None where a term does not depend on it
Loss = Callable[[range], Tensor | tuple[Tensor, ...]]
Mix = Callable[[Tensor, list[Gradients]], tuple[Tensor, Gradients]]


def slopes(loss: Loss, parameters: Sequence[Tensor], rows: int, what: str) -> tuple[Tensor, list[Gradients]]:
    """The terms of a loss [terms], means over ``rows`` places, and each one's gradients; as many at once as fit.

    Args:
        loss: scalar terms of a range of places, each the mean over these. It is asked again where memory did not
            suffice (:func:`erasebench.devices.halving`), so it must leave things as they were.
        parameters: what the gradients are of.
        rows: places, >= 1.
        what: their name, in the line that says that there was no memory for all.

    >>> weight = torch.tensor([2.0], requires_grad=True)
    >>> value, gradients = slopes(lambda places: (weight * torch.tensor([1.0, 3.0])).mean(), [weight], 2, "rows")
    >>> value.tolist(), gradients
    ([4.0], [[tensor([2.])]])
    """

    def of(places: range) -> tuple[float, Tensor, list[Gradients]]:
        made = loss(places)
        terms = made if isinstance(made, tuple) else (made,)
        found = [
            list(torch.autograd.grad(term, parameters, allow_unused=True, retain_graph=i + 1 < len(terms)))
            for i, term in enumerate(terms)
        ]
        return len(places) / rows, torch.stack([term.detach() for term in terms]), found

    first, *others = halving(of, range(rows), rows, what, parameters[0].device)
    if not others:
        return first[1:]
    parts = [first, *others]
    values = torch.stack([share * part for share, part, _ in parts]).sum(0)
    shares = [share for share, *_ in parts]
    return values, [
        [_added(shares, column) for column in zip(*(part[2][term] for part in parts), strict=True)]
        for term in range(len(values))
    ]


def _added(shares: Sequence[float], column: Sequence[Tensor | None]) -> Tensor | None:
    given = [share * one for share, one in zip(shares, column, strict=True) if one is not None]
    return torch.stack(given).sum(0) if given else None


def total(values: Tensor, gradients: list[Gradients]) -> tuple[Tensor, Gradients]:
    """The sum of a loss's terms [terms] and its gradients."""
    if len(gradients) == 1:
        return values[0], gradients[0]
    return values.sum(), [_added([1.0] * len(gradients), column) for column in zip(*gradients, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training that resumes to the same last bit: the state after step n depends on nothing but that before it.

    Progress goes into the current workspace (``erasebench.store.workspace``) under the name ``training``.

    Args:
        name: shown beside the progress bar and in errors.
        identity: what was asked for; progress of another request is not resumed.
        iterations: how many steps there are.
        optimisers: by name; each step belongs to one of them.
        state: every tensor that training changes apart from the optimisers' own.
        clip: gradients are scaled down to this norm; None leaves them.
    """

    name: str
    identity: str
    iterations: int
    optimisers: Mapping[str, torch.optim.Optimizer]
    state: Mapping[str, Tensor]
    clip: float | None = None

    def run(
        self,
        loss: Callable[..., Tensor | tuple[Tensor, ...]],
        *,
        rows: int | None = None,
        mix: Mix = total,
        turn: Callable[[int], str] | None = None,
        before: Callable[[int], None] = lambda step: None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Take every step that has not been taken yet: the loss, its gradients, one optimiser's update.

        Args:
            loss: of step number 0, 1, ... and a range of places in its batch: the mean over these, a scalar or several
                terms. Random numbers in it must depend on the step and the place alone, and it must leave everything
                as it was. Without memory for all places gradients are added up over halves, which changes rounding
                alone (:func:`slopes`).
            rows: places of a step; None: ``loss(step)`` is taken whole.
            mix: from the terms' means over all places and their gradients, the loss and its gradient; their sums.
            turn: name of the step's optimiser; None: there is only one.
            before, after: called before each step, with its number, and after each update.

        Raises:
            FloatingPointError: a loss or gradient that is NaN or infinite; the state before that step is kept.
        """
        first = self._resume()
        saved, pause = time.monotonic(), SAVE_SECONDS
        with progress.bar(desc=self.name, initial=first, total=self.iterations, unit="step") as bar:
            for step in range(first, self.iterations):
                optimiser = self.optimisers[turn(step)] if turn else next(iter(self.optimisers.values()))
                before(step)
                of = partial(loss, step) if rows else lambda places, step=step: loss(step)
                bar.set_postfix(loss=self._update(step, of, optimiser, rows or 1, mix))
                bar.update()
                after()
                if step + 1 < self.iterations and time.monotonic() - saved >= pause:
                    started = time.monotonic()
                    self._save(step + 1)
                    saved = time.monotonic()
                    pause = max(SAVE_SECONDS, (saved - started) / SAVE_SHARE)

    def _update(self, step: int, loss: Loss, optimiser: torch.optim.Optimizer, rows: int, mix: Mix) -> float:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        value, gradients = mix(*slopes(loss, parameters, rows, f"latents of {self.name}'s steps"))
        norm = nn.utils.get_total_norm([g for g in gradients if g is not None])
        self._check(step, {"loss": value, "gradient's norm": norm})
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        optimiser.step()
        optimiser.zero_grad()
        return float(value)

    def _check(self, step: int, numbers: Mapping[str, Tensor]) -> None:
        """Stop before NaN or infinity reaches a weight, and keep what there was."""
        for what, number in numbers.items():
            if not torch.isfinite(number):
                self._save(step)
                folder = workspace.current().folder
                kept = f"the state before it is kept in {folder}" if folder else "nothing is kept outside a run"
                raise FloatingPointError(
                    f"{self.name}: {what} must be finite; got {float(number)} at step {step} of {self.iterations}; "
                    f"{kept}; use a smaller lr"
                )

    def _save(self, step: int) -> None:
        tensors = {f"state.{name}": tensor for name, tensor in self.state.items()}
        for name, optimiser in self.optimisers.items():
            for index, slots in optimiser.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{slot}": torch.as_tensor(value) for slot, value in slots.items()}
        workspace.current().save("training", tensors, step=step, identity=self.identity)

    @torch.no_grad()
    def _resume(self) -> int:
        tensors, values = workspace.current().load("training") or ({}, {})
        if values.get("identity") != self.identity:
            return 0
        for name, tensor in self.state.items():
            tensor.copy_(tensors[f"state.{name}"])
        for name, optimiser in self.optimisers.items():
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"{name}."):
                    index, slot = key.removeprefix(f"{name}.").split(".")
                    slots.setdefault(int(index), {})[slot] = value
            optimiser.load_state_dict(optimiser.state_dict() | {"state": slots})
        return int(values["step"])
