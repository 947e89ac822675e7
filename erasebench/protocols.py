"""The verbs of the benchmark: what a method, an attack, an evaluator, a judge and a guide must do.

Implementations subclass a protocol and are frozen dataclasses whose fields are the hyper-parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar, Protocol

from erasebench.store.images import ImageSet
from erasebench.types import Access, Concept, Headline, Pipeline, Prompt, Score, Status, Strength, Verdict

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image


class Judge(Protocol):
    """Says whether a concept is in an image; used by attacks that stop early and by the accuracy evaluators."""

    @property
    def name(self) -> str:
        """Short name of the judge and its weights, part of every metric's name."""
        ...

    @property
    def about(self) -> str:
        """One sentence: what this judge is, of which weights."""
        ...

    def check(self, concepts: Collection[str]) -> None:
        """Raise a ValueError, before any weight is loaded, for a concept this judge cannot see."""
        ...

    def __call__(self, images: Sequence[Image.Image], concepts: Sequence[str]) -> list[Verdict]:
        """One verdict per image; ``concepts[i]`` is the concept looked for in ``images[i]``."""
        ...


class FeatureNetwork(Protocol):
    """A network whose activations describe an image; hashable, ``name`` carries its weights and how it resizes."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str: ...

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Activations [n, d] float32."""
        ...


Seen = tuple[Prompt, "Image.Image | None", Status]  # an image is there exactly if its status is ok
Watcher = Generator[None, Sequence[Seen] | None, None]  # is sent batches, at last None


class Look(Protocol):
    """Something that looks at images one by one and remembers what it found (:mod:`erasebench.judges.looking`)."""

    def __hash__(self) -> int: ...

    @property
    def groups(self) -> tuple[str, ...]:
        """Prompt groups whose images it wants."""
        ...

    def watch(self, images: ImageSet) -> Watcher:
        """A started generator's worth of work: takes batches of ``images`` in order."""
        ...


class Method(Protocol):
    """An erasure method: returns a pipeline without the concept and leaves ``pipe`` itself untouched.

    ``together`` says how it erases several concepts: in one edit of a joint concept (``joint``), one after another
    (``sequence``), or both. ``guard`` says that it works while drawing and leaves all weights as they are; where
    methods are composed (``method=uce+sld_max``) such a one comes last.
    """

    together: ClassVar[tuple[str, ...]] = ("sequence",)
    denoisers: ClassVar[tuple[str, ...]] = ("unet",)  # what it can work on: unet, transformer
    guard: ClassVar[bool] = False

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise a one-line ValueError for what cannot work, before any weight is loaded; nothing by default.

        ``shapes``: the model's tensors as in ``diffusion.headers.folder_shapes``; empty if it is not on this disk.
        """

    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline without the concept, a fork of ``pipe``; what cannot be read off its weights is handed over on it.

        ``guide``: an erasure that lives in the sampler, see :class:`Guide`. ``edit_matrix``: T [d, d] float64 where the
        whole edit is W -> W T in every cross-attention key and value; it is stored in place of the changed weights.
        """
        ...


class Guide(Protocol):
    """An erasure that lives in the sampler: how a step's predictions are combined, instead of other weights.

    A frozen dataclass whose fields are JSON values, so that it is stored by its class and its fields. A method sets it
    as the attribute ``guide`` of the pipeline it returns (a fork), and ``diffusion.generate`` asks it at every step.

    Args:
        empty: text of the branch that guidance leads away from; ``""`` without a guide.
        extra: texts of further branches of the same UNet batch, computed only at steps that need them.
    """

    empty: str
    extra: tuple[str, ...]

    def needed(self, scales: Sequence[float], step: int) -> bool:
        """Whether step ``step`` of a batch with these guidance scales needs the further branches."""
        ...

    def combine(
        self,
        empty: torch.Tensor,
        text: torch.Tensor,
        extra: Sequence[torch.Tensor],
        scale: torch.Tensor,
        step: int,
        state: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """The prediction of a step that needs the further branches; at others it is ``empty + scale (text - empty)``.

        Args:
            empty, text: predicted noise for the guide's ``empty`` and for the prompts, [batch, channels, h, w]; of a
                velocity model, too: its velocity is turned into noise before and back afterwards.
            extra: one prediction of that shape per text of ``extra``.
            scale: guidance scales [batch, 1, 1, 1].
            step: index of the denoising step, from 0.
            state: what the guide keeps from step to step; empty at the first step of a batch.
        """
        ...

    def drawing(
        self, pipe: Pipeline, prompts: Sequence[Prompt], states: torch.Tensor
    ) -> AbstractContextManager[Callable[[int], torch.Tensor]]:
        """A block in which one batch is drawn; it gives the text states of a step, the prompts' own by default.

        Args:
            pipe: what draws; whatever the block sets on it, it takes away again.
            prompts: of the batch.
            states: [branches * batch, tokens, width], as they are laid out in the UNet's batch: the empty text unless
                no guidance is asked for, the prompts, and one branch per text of ``extra`` where one is needed.
        """
        return nullcontext(lambda step: states)


class Adapter(Protocol):
    """An erasure beside the weights: small networks on a UNet's layers (:mod:`erasebench.diffusion.adapters`).

    A frozen dataclass whose fields are JSON values, so that it is stored by its class and its fields; its tensors
    are stored apart.
    """

    def beside(self, layer: torch.nn.Module) -> torch.nn.Module:
        """A new module for a layer, called as ``module(layer, inputs, output)``: what stands in the output's place."""
        ...


class Attack(Protocol):
    """A red-team attack: turns prompts of the erased concept into adversarial ones (group ``attack``).

    ``access`` is the threat model printed in every table. An attack that does not look at the erased model (``none``,
    ``text_encoder``) is searched once on ``original`` and reused for every method; one that asks it for images
    (``queries``, black-box) or for gradients (``model``, white-box) is searched for each.

    ``strength`` says what the attacker hands over (text, embeddings, ...): rates of different strengths do not compare.
    ``control`` marks what has luck and no aim; an attack is read beside the controls that spend as much.
    ``spends`` names the fields that are its budget, how much it may look for (queries, generations, iterations); a
    ``budget=`` changes these only. All other fields are what it is: its strength and its settings.
    """

    access: Access
    strength: Strength
    control: ClassVar[bool] = False
    spends: ClassVar[tuple[str, ...]] = ()

    def check(self, concept: Concept) -> None:
        """Raise a one-line ValueError or OSError, before any weight is loaded, for what this attack cannot do."""

    def attack(
        self, pipe: Pipeline, original: Pipeline, prompts: Sequence[Prompt], concept: Concept, judge: Judge
    ) -> list[Prompt]: ...


class Evaluator(Protocol):
    """A measurement of the images of some prompt ``groups``; ``version`` is raised when its definition changes.

    ``headlines`` says which of its metrics tables and flags show, in which order and as what; the others are recorded.
    ``needs`` names the packages of an optional extra that it imports, as a literal tuple in the class: an evaluator
    nobody asked for by name is left out where they are not installed (``building.without_extras``).
    ``beside`` names the field that holds a :class:`Method`: ``score`` is then given the images of the model it makes of
    the original in place of the original's; "" for the original's.
    """

    groups: tuple[str, ...]
    version: int
    needs: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[str] = ""

    @property
    def headlines(self) -> Sequence[Headline]:
        return ()

    @property
    def looks(self) -> Sequence[Look]:
        """What its numbers come from, to be shown every image in one pass for all evaluators; nothing by default."""
        return ()

    def check(self) -> None:
        """Raise a one-line ValueError or OSError, before any weight is loaded, for files this evaluator cannot read."""

    def score(self, images: ImageSet, original: ImageSet) -> list[Score]: ...


def other_side(name: str, evaluator: Evaluator) -> str:
    """Whose images an evaluator compares with; the dot keeps its own model apart from the run's two."""
    return f"{name}.{evaluator.beside}" if evaluator.beside else "original"
