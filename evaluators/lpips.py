"""How much has each image changed to the eye? LPIPS to the original model's image of the same prompt and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from erasebench import fields
from erasebench.devices import check_device
from erasebench.judges.pairing import distances
from erasebench.judges.perceptual import activations, alexnet, check_alexnet, layer_distances, to_tensor
from erasebench.protocols import Evaluator
from erasebench.store.images import ImageSet
from erasebench.types import ERASED_GROUPS, GROUPS, Headline, Score

if TYPE_CHECKING:
    from PIL import Image

FULL = "full"


@dataclass(frozen=True, kw_only=True)
class LPIPS(Evaluator):
    """LPIPS version 0.1 with AlexNet (Zhang et al., arXiv 1801.03924) between erased and original, in [0, 1] or so.

    ``lpips.alex_v0.1.64px``: both images resized to 64 x 64, as ESD, UCE and RECE print it; ``lpips.alex_v0.1.full``:
    as drawn. See :func:`erasebench.judges.perceptual.layer_distances`. Resizing is PIL's bilinear filter, torchvision's
    ``Resize`` of a PIL image; scripts that resize by OpenCV or tensors without antialiasing get other values at 64 px.

    For prompts that ask for the erased concept more change is better (papers' LPIPS_e), for all others less (LPIPS_u).
    A high value on the former says that pictures changed, not that the concept is gone: noise has the highest. The
    original model's own value is 0.

    Args:
        weights: torchvision's AlexNet (``alexnet-owt-7be5be79.pth``) as ``.safetensors``, or None to download it. The
            learned heads come with torchmetrics.
        sizes: sides in pixels, and ``full``.
        groups: prompt groups scored.
        device: torch device.
        batch_size: pairs at a time.
        version: of this definition.

    Raises:
        ValueError: a size below 64, where AlexNet has nothing left to pool, or a file of another kind.
    """

    needs: ClassVar[tuple[str, ...]] = ("torchmetrics",)
    fetched: ClassVar[str] = "alexnet-owt-7be5be79.pth"  # name of the download in torch's cache

    weights: str | None = None
    sizes: tuple[int | str, ...] = (64, FULL)
    groups: tuple[str, ...] = ("target", "paraphrase", "neighbour", "unrelated", "coco")
    device: str = "cpu"
    batch_size: int = 32
    version: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", fields.chosen("evaluator.lpips.groups", self.groups, GROUPS, least=1))
        fields.integer("evaluator.lpips.batch_size", self.batch_size, least=1)
        sizes = tuple(self.sizes) if isinstance(self.sizes, list | tuple) else (self.sizes,)
        if not sizes or any(size != FULL and (not isinstance(size, int) or size < 64) for size in sizes):
            raise ValueError(f"evaluator.lpips.sizes must be a list of sides >= 64 and {FULL}; got {self.sizes!r}")
        object.__setattr__(self, "sizes", sizes)
        if self.weights is not None:
            path = fields.path("evaluator.lpips.weights", self.weights)
            if path.suffix != ".safetensors" or not path.is_file():
                raise ValueError(
                    f"evaluator.lpips.weights must be an existing .safetensors file; got {self.weights!r}; convert "
                    f"torchvision's: python -m erasebench.convert {self.fetched} alexnet.safetensors"
                )
            object.__setattr__(self, "weights", str(path))

    def check(self) -> None:
        """The weights are AlexNet's, judged by their header."""
        check_device("evaluator.lpips.device", self.device)
        if self.weights is not None:
            check_alexnet(self.weights)

    @property
    def headlines(self) -> tuple[Headline, ...]:
        """The first size; on the leaderboard what should survive."""
        words = {"target": "its name", "paraphrase": "synonyms", "coco": "general prompts"}
        return tuple(
            Headline(
                metric=self._metric(self.sizes[0]), group=g, label=f"LPIPS to the original's image: {words.get(g, g)}",
                head="" if g in ERASED_GROUPS else f"LPIPS {words.get(g, g)}", place=140 + i, role="likeness",
            )
            for i, g in enumerate(GROUPS)
        )  # fmt: skip

    def score(self, images: ImageSet, original: ImageSet) -> list[Score]:
        """One score per image and size."""
        ours, theirs = images.only(self.groups), original.only(self.groups)
        return [
            Score(
                evaluator="lpips", metric=self._metric(size), value=value, group=prompt.group, prompt_id=prompt.id,
                relation=prompt.relation, higher_is_better=prompt.group in ERASED_GROUPS, status=status, rate=False,
            )
            for size in self.sizes
            for prompt, value, status in distances(ours, theirs, partial(self._distances, size))
        ]  # fmt: skip

    def _metric(self, size: int | str) -> str:
        return f"lpips.alex_v0.1.{size if size == FULL else f'{size}px'}"

    def _distances(self, size: int | str, ours: Sequence[Image.Image], theirs: Sequence[Image.Image]) -> list[float]:
        import torch

        network, heads = alexnet(self.weights, self.device)
        side = None if isinstance(size, str) else size
        found: list[float] = []
        pairs = [(to_tensor(a, side), to_tensor(b, side)) for a, b in zip(ours, theirs, strict=True)]
        start = 0
        while start < len(pairs):  # runs of one size
            end = start + 1
            while end < len(pairs) and end - start < self.batch_size and pairs[end][0].shape == pairs[start][0].shape:
                end += 1
            with torch.inference_mode():
                sides = (torch.stack([pair[i] for pair in pairs[start:end]]).to(self.device) for i in (0, 1))
                a, b = (activations(network, pictures) for pictures in sides)
                found += layer_distances(a, b, heads).cpu().tolist()
            start = end
        return found
