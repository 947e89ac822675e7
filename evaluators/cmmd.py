"""Are the pictures still as good, in CLIP's eyes? CMMD of the kept prompts' images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from erasebench import fields
from erasebench.judges.clip import ImageSide
from erasebench.judges.mmd import MMD, gaussian, squared_mmd
from erasebench.protocols import FeatureNetwork
from evaluators.set_distance import SetDistance

if TYPE_CHECKING:
    from erasebench.judges.clip import ImageText

SCALE = 1000


@dataclass(frozen=True, kw_only=True)
class CMMD(SetDistance):
    """CLIP maximum mean discrepancy times 1000 (Jayasumana et al., arXiv 2401.09603), pooled over what should survive.

    The biased squared discrepancy (all terms, also i = j, as the paper's code has it) of unit image features with
    ``k(x, y) = exp(-|x - y|^2 / (2 sigma^2))``, sigma 10, times 1000: ``cmmd.<model>.vs_<folder>`` to real images,
    ``cmmd.<model>.vs_original`` to the original model's of the same prompts and noise. Never negative, 0 for the
    original itself; no Gaussian shape is assumed.

    The paper's model is OpenAI's ViT-L/14 at 336 px (``clip=openai_l14_336``). Images are resized by the model's own
    preprocessing (open_clip: PIL bicubic, shorter side, centre crop), as the original code resizes; the popular
    PyTorch port squashes to a square by torch's bicubic without antialiasing and gives other values.

    Args:
        model: a CLIP-like model, see :mod:`erasebench.judges.clip`; its name is part of the metric's.
        groups: prompt groups pooled.
        real: folder of real images, or None.
        sigma: width of the kernel.
        version: of this definition.
    """

    evaluator: ClassVar[str] = "cmmd"
    head: ClassVar[str] = "CMMD"
    place: ClassVar[int] = 84
    floor: ClassVar[float] = 0.0

    model: ImageText
    groups: tuple[str, ...] = ("neighbour", "unrelated", "coco")
    real: str | None = None
    sigma: float = 10.0
    version: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.number("evaluator.cmmd.sigma", self.sigma, above=0)

    @property
    def network(self) -> FeatureNetwork:
        return ImageSide(self.model)

    @property
    def metric(self) -> str:
        return f"cmmd.{self.model.name}" + ("" if self.sigma == 10 else f".sigma{self.sigma:g}")

    def distance(self, ours: np.ndarray, theirs: np.ndarray, paired: bool) -> MMD:
        """Times 1000, of all rows; of pairs both images of each move it."""
        kernel = gaussian(self.sigma)
        found = squared_mmd(ours, theirs, kernel, "biased")
        moved = found.moved + squared_mmd(theirs, ours, kernel, "biased").moved if paired else found.moved
        return MMD(max(0.0, SCALE * found.value), SCALE * moved)
