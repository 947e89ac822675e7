"""A trained image classifier as a judge: which networks there are is in ``judges/networks.py``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from erasebench import fields
from erasebench.judges.judging import check_files
from erasebench.protocols import Judge
from erasebench.types import Verdict

if TYPE_CHECKING:
    from PIL import Image

Names = Mapping[str, str] | Sequence[tuple[str, str]]


class ImageClassifier(Protocol):
    """A network over fixed labels; hashable, ``name`` carries architecture and weights."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The k labels in the order of the network's outputs; read from files without loading weights."""
        ...

    def probabilities(self, images: Sequence[Image.Image]) -> np.ndarray:
        """[n, k] float64, rows of sum 1."""
        ...


@dataclass(frozen=True)
class ProbabilitySide:
    """A classifier's probabilities as features, so that they are kept as such: [n, k] float32."""

    network: ImageClassifier

    @property
    def name(self) -> str:
        return self.network.name

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """[n, k] float32."""
        return self.network.probabilities(images).astype(np.float32)


def plain(label: str) -> str:
    """A label without case, underscores and hyphens.

    >>> plain("vincent-van-gogh") == plain("Vincent van_Gogh")
    True
    """
    return re.sub(r"[\W_]+", " ", label).strip().casefold()


def places(labels: Sequence[str], concept: str, names: Names = ()) -> list[int]:
    """Where a concept stands among labels: those that are its name, or have it as one of the names between commas.

    ImageNet has a bird and a machine called crane, so there may be several; none if the network does not know it.

    Args:
        labels: of a network.
        concept: as in the config, ``chain_saw``.
        names: label by concept, for labels that are written in another way.

    >>> places(["tench, Tinca tinca", "chain saw, chainsaw", "crane", "crane"], "chain_saw")
    [1]
    >>> places(["a", "vincent-van-gogh"], "van_gogh", {"van_gogh": "Vincent van Gogh"})
    [1]
    """
    wanted = plain(dict(names).get(concept, concept))
    return [i for i, label in enumerate(labels) if wanted in (plain(label), *map(plain, label.split(",")))]


def pairs(name: str, value: Names | None) -> tuple[tuple[str, str], ...]:
    """A mapping of concepts to labels as hashable pairs.

    >>> pairs("judge.names", {"van_gogh": "vincent-van-gogh"})
    (('van_gogh', 'vincent-van-gogh'),)
    """
    if not isinstance(value, Mapping):
        value = dict(value or ())
    return tuple((str(k), fields.text(f"{name}.{k}", v, empty=False)) for k, v in value.items())


def ranks(probabilities: np.ndarray, own: Sequence[int]) -> np.ndarray:
    """[n] number of labels ahead of the best of ``own``, 0 for the first; equal ones are not ahead.

    >>> ranks(np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]), [2]).tolist()
    [1, 0]
    """
    best = probabilities[:, list(own)].max(axis=1, keepdims=True)
    return np.asarray((probabilities > best).sum(axis=1))


@dataclass(frozen=True, kw_only=True)
class ClassifierJudge(Judge):
    """A concept is present where it is the classifier's first label: ImageNet's objects, artists, faces.

    UnlearnDiffAtk judges objects so (arXiv 2310.11868: microsoft/resnet-50, ``network=folder``); the object tables of
    ESD, UCE and RECE print the top-1 accuracy of a ResNet-50.

    Args:
        network: the classifier.
        names: label by concept, where the network writes it in another way.

    Raises:
        ValueError: when checked, a concept that the network has no label for.
    """

    network: ImageClassifier
    names: Names = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", pairs("judge.names", self.names))

    def check_files(self) -> None:
        """As the network's."""
        check_files(self.network)

    @property
    def name(self) -> str:
        return self.network.name

    @property
    def about(self) -> str:
        """What it is, in a sentence."""
        return f"The first of the {len(self.network.labels)} labels of {self.network.name}."

    def check(self, concepts: Collection[str]) -> None:
        """Every concept has a label."""
        for concept in sorted(set(concepts)):
            if not places(self.network.labels, concept, self.names):
                close = fields.meant(concept.replace("_", " "), self.network.labels)
                raise ValueError(
                    f"concept {concept!r} must be among the {len(self.network.labels)} labels of {self.name}; got "
                    f"none; {close or 'name its label in judge.names'}"
                )

    def __call__(self, images: Sequence[Image.Image], concepts: Sequence[str]) -> list[Verdict]:
        """One verdict per image: top-1, the concept's probability, the label seen."""
        self.check(concepts)
        if not images:
            return []
        found, labels = self.network.probabilities(images), self.network.labels
        own = [places(labels, concept, self.names) for concept in concepts]
        return [
            Verdict(present=int(p.argmax()) in mine, score=float(p[mine].sum()), label=labels[int(p.argmax())])
            for p, mine in zip(found, own, strict=True)
        ]
