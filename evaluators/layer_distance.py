"""How much has each image changed to a judge's own network? LPIPS's formula without its learned weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from erasebench import fields, protocols
from erasebench.judges.judging import check_files
from erasebench.judges.pairing import distances
from erasebench.judges.perceptual import layer_distances
from erasebench.protocols import Evaluator
from erasebench.store.images import ImageSet
from erasebench.types import ERASED_GROUPS, GROUPS, Headline, Score

if TYPE_CHECKING:
    import torch
    from PIL import Image


class LayeredNetwork(protocols.FeatureNetwork, Protocol):
    """A feature network that shows its layers."""

    def layers(self, images: Sequence[Image.Image]) -> list[torch.Tensor]:
        """Activations [n, c, h, w] float32 of each layer."""
        ...


@dataclass(frozen=True, kw_only=True)
class LayerDistance(Evaluator):
    """``layer_distance.<network>``: how far erased and original image of one prompt and noise are apart.

    LPIPS's formula with every channel's weight 1 (the uncalibrated distance of Zhang et al., arXiv 1801.03924) on the
    layers of the run's own feature network: :func:`erasebench.judges.perceptual.layer_distances`. It is no LPIPS: the
    network is not one of its three and nothing was fitted to what people see, so values compare with nothing but
    themselves. In 0..2 a layer, as activations are not negative. It is what there is without AlexNet's weights.

    Args:
        features: a network with ``layers``, e.g. the embedded world's classifier.
        groups: prompt groups scored.
        version: of this definition.
    """

    features: LayeredNetwork
    groups: tuple[str, ...] = ("target", "paraphrase", "neighbour", "unrelated", "coco")
    version: int = 1

    def __post_init__(self) -> None:
        chosen = fields.chosen("evaluator.layer_distance.groups", self.groups, GROUPS, least=1)
        object.__setattr__(self, "groups", chosen)

    def check(self) -> None:
        """The network shows its layers and its files can be read."""
        if not hasattr(self.features, "layers"):
            raise ValueError(
                f"evaluator.layer_distance.features must show its layers; got {self.features.name}, which has none; "
                "use evaluator=[lpips]"
            )
        check_files(self.features)

    @property
    def headlines(self) -> tuple[Headline, ...]:
        """Every group in the closing table; on the leaderboard what should survive."""
        words = {"target": "its name", "paraphrase": "synonyms", "coco": "general prompts"}
        return tuple(
            Headline(
                metric=f"layer_distance.{self.features.name}", group=g,
                label=f"layer distance to the original's image: {words.get(g, g)}",
                head="" if g in ERASED_GROUPS else f"layer distance {words.get(g, g)}", place=150 + i, role="likeness",
            )
            for i, g in enumerate(GROUPS)
        )  # fmt: skip

    def score(self, images: ImageSet, original: ImageSet) -> list[Score]:
        """One score per image."""
        return [
            Score(
                evaluator="layer_distance", metric=f"layer_distance.{self.features.name}", value=value,
                group=prompt.group, prompt_id=prompt.id, relation=prompt.relation,
                higher_is_better=prompt.group in ERASED_GROUPS, status=status, rate=False,
            )
            for prompt, value, status in distances(
                images.only(self.groups), original.only(self.groups), self._distances
            )
        ]  # fmt: skip

    def _distances(self, ours: Sequence[Image.Image], theirs: Sequence[Image.Image]) -> list[float]:
        found: list[float] = layer_distances(self.features.layers(ours), self.features.layers(theirs)).tolist()
        return found
