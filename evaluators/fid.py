"""Are the pictures still as good? Fréchet distance of the kept prompts' images to real ones and to the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from erasebench import fields
from erasebench.judges.judging import check_files
from erasebench.protocols import Evaluator
from erasebench.store.images import ImageSet
from erasebench.types import GROUPS, Headline, Score

if TYPE_CHECKING:
    from PIL import Image

BLOCKS = 50  # of the jackknife
WIDEST = 512  # features wider than this get no interval: each distance takes seconds
FEWEST = 10  # images below which no interval is given


class FeatureNetwork(Protocol):
    """A network whose activations describe an image; hashable, ``name`` carries its weights and how it resizes."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str: ...

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Activations [n, d] float32."""
        ...

    def reference(self) -> tuple[np.ndarray, np.ndarray, int] | None:
        """Mean [d] and covariance [d, d] float64 of real images and their number; None if there are none."""
        ...


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased covariance of features.

    Args:
        features: [n, d], n >= 2.

    Returns:
        mean [d] and covariance [d, d], float64.

    Raises:
        ValueError: fewer than two rows, or a value that is not finite.

    >>> mean, covariance = moments(np.array([[0.0, 0.0], [2.0, 0.0]]))
    >>> mean.tolist(), covariance.tolist()
    ([1.0, 0.0], [[2.0, 0.0], [0.0, 0.0]])
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"features must be [n, d] of at least two images; got shape {features.shape}; draw more images"
        )
    if not np.isfinite(features).all():
        raise ValueError("features must be finite; got nan or infinity; check the feature network's weights")
    centred = features - features.mean(axis=0)
    return features.mean(axis=0), centred.T @ centred / (len(features) - 1)


def frechet_distance(mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray) -> float:
    """Fréchet distance of two Gaussians, squared as in FID (Dowson and Landau 1982; Heusel et al., arXiv 1706.08500).

    ``d2 = |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^{1/2})``. With ``S = A A^T`` the last trace is the sum of the singular
    values of ``A1^T A2``; unlike a matrix square root this needs no full rank, no tiny diagonal and no complex numbers.

    Args:
        mean1, mean2: [d].
        covariance1, covariance2: [d, d], symmetric positive semi-definite.

    Returns:
        The distance, >= 0, computed in float64.

    Raises:
        ValueError: shapes that do not fit together.

    One dimension has the closed form (m1 - m2)^2 + (s1 - s2)^2:

    >>> one = np.ones((1, 1))
    >>> frechet_distance(np.zeros(1), 4 * one, np.array([3.0]), 1 * one)
    10.0
    """
    m1, s1, m2, s2 = (np.asarray(a, dtype=np.float64) for a in (mean1, covariance1, mean2, covariance2))
    if not (m1.ndim == 1 and m1.shape == m2.shape and s1.shape == s2.shape == (m1.size, m1.size)):
        raise ValueError(
            f"means must be [d], covariances [d, d] of one d; got {m1.shape}, {s1.shape} and {m2.shape}, {s2.shape}; "
            "use statistics of the same feature network"
        )
    if np.array_equal(m1, m2) and np.array_equal(s1, s2):
        return 0.0
    overlap = np.linalg.svd(_factor(s1).T @ _factor(s2), compute_uv=False).sum()
    return max(0.0, float(((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * overlap))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """A [d, rank] with A A^T = covariance; directions without variance (up to rounding) are left out."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def jackknife_error(measure: Callable[[np.ndarray], float], n: int, blocks: int = BLOCKS) -> float:
    """Standard error of a statistic of n items by the delete-a-block jackknife (Efron and Stein 1981).

    ``se^2 = (B - 1) / B * sum_b (t_b - mean t)^2``, t_b the statistic without block b; the blocks are drawn with a
    fixed seed.

    Args:
        measure: statistic of the items whose indices [m] it is given.
        n: number of items, at least 3.
        blocks: at most this many blocks, each of nearly equal size.

    For a mean of n items in n blocks it is the textbook standard error:

    >>> x = np.array([1.0, 2.0, 3.0, 6.0])
    >>> bool(np.isclose(jackknife_error(lambda i: x[i].mean(), 4), x.std(ddof=1) / 2))
    True
    """
    blocks = min(n, blocks)
    block = np.random.default_rng(0).permutation(n) % blocks
    values = np.array([measure(np.flatnonzero(block != b)) for b in range(blocks)])
    return float(np.sqrt((blocks - 1) / blocks * ((values - values.mean()) ** 2).sum()))


@lru_cache(maxsize=2)
def _features(network: FeatureNetwork, images: ImageSet) -> dict[str, np.ndarray]:
    """Prompt id -> features [d] of every image that could be made; the last two sets are remembered."""
    found: dict[str, np.ndarray] = {}
    for batch in images.batches():
        drawn = [(prompt.id, image) for prompt, image, _ in batch if image is not None]
        if drawn:
            found |= zip((i for i, _ in drawn), network.features([image for _, image in drawn]), strict=True)
    return found


@dataclass(frozen=True, kw_only=True)
class FID(Evaluator):
    """Fréchet distance between feature distributions, pooled over the groups that should survive.

    - ``fid.<network>.vs_<reference>``: N images against the network's statistics of real images;
    - ``fid.<network>.vs_original``: against the original model's images of the same prompts and noise, which is 0
      for the original itself.

    The distance of a finite sample is too high, the more so the smaller N, which stands beside it as ``n``: values of
    another N, network or reference must not be compared. ``low`` and ``high`` are a 95 % interval of the distance *at
    this N*: 1.96 standard errors of the jackknife. (A bootstrap repeats images, which raises the distance itself: on
    simulated 128-d features, N 60 to 400, its percentile interval missed the true mean 97 % of the time or more, while
    the jackknife's standard error came within 10 % of the true one.) Features wider than 512 and fewer than 10 images
    get no interval.

    Args:
        features: the network, hashable; :class:`erasebench.judges.inception.Inception` gives the usual FID.
        groups: prompt groups pooled.
        version: of this definition.
    """

    features: FeatureNetwork
    groups: tuple[str, ...] = ("neighbour", "unrelated", "coco")
    version: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", fields.chosen("evaluator.fid.groups", self.groups, GROUPS, least=1))

    def check(self) -> None:
        """The network's files are there and of the right kind, as far as it says how to find out."""
        check_files(self.features)

    @property
    def headlines(self) -> tuple[Headline, ...]:
        """Against real images first, else against the original's; the metric's name is the label."""
        return tuple(
            Headline(
                metric=f"fid.{self.features.name}.{against}", group="kept", label="{metric}", head="FID", place=place,
                role="distance",
            )
            for against, place in ((self._reference, 80), ("vs_original", 81))
        )  # fmt: skip

    @property
    def _reference(self) -> str:
        return f"vs_{getattr(self.features, 'reference_name', 'real')}"

    def score(self, images: ImageSet, original: ImageSet) -> list[Score]:
        """One or two scores of group ``kept``; with fewer than two images made, a status instead of a number."""
        chosen = images.only(self.groups)
        if not chosen.prompts:
            return []
        drawn, base = _features(self.features, chosen), _features(self.features, original.only(self.groups))
        scores = []
        reference = self.features.reference()
        if reference is not None:
            ours = _stack(drawn, drawn)
            scores.append(
                self._score(self._reference, ours, lambda keep: frechet_distance(*moments(ours[keep]), *reference[:2]))
            )
        shared = [i for i in drawn if i in base]
        now, before = _stack(drawn, shared), _stack(base, shared)
        scores.append(
            self._score("vs_original", now, lambda keep: frechet_distance(*moments(now[keep]), *moments(before[keep])))
        )
        return scores

    def _score(self, against: str, features: np.ndarray, measure: Callable[[np.ndarray], float]) -> Score:
        count = len(features)
        metric = f"fid.{self.features.name}.{against}"  # without N, which a failed image makes differ between sides
        if count < 2:
            return Score(
                evaluator="fid", metric=metric, value=math.nan, group="kept", higher_is_better=False, status="error",
                n=count,
            )  # fmt: skip
        value = measure(np.arange(count))
        low = high = None
        if count >= FEWEST and features.shape[1] <= WIDEST:
            margin = 1.96 * jackknife_error(measure, count)
            low, high = max(0.0, value - margin), value + margin
        return Score(
            evaluator="fid",
            metric=metric,
            value=value,
            group="kept",
            higher_is_better=False,
            low=low,
            high=high,
            n=count,
        )


def _stack(found: dict[str, np.ndarray], ids: Sequence[str] | dict[str, np.ndarray]) -> np.ndarray:
    return np.array([found[i] for i in ids])
