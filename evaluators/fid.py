"""Are the pictures still as good? Fréchet distance of the kept prompts' images to real ones and to the original's."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from erasebench import fields, protocols
from erasebench.judges.activations import features_of
from erasebench.judges.judging import check_files
from erasebench.judges.looking import FeatureLook
from erasebench.judges.moments import Moments
from erasebench.protocols import Evaluator
from erasebench.report.influence import rows
from erasebench.store.images import ImageSet
from erasebench.types import GROUPS, Headline, Score

log = logging.getLogger(__name__)

BLOCK = 1024  # images whose features are held in float64 at a time


class FeatureNetwork(protocols.FeatureNetwork, Protocol):
    """One that may know what real images look like to it."""

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
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"features must be [n, d] of at least two images; got shape {features.shape}; draw more images"
        )
    found = Moments(features.shape[1])
    for block in _blocks(features):
        found.add(block)
    if not np.isfinite(found.mean).all():
        raise ValueError("features must be finite; got nan or infinity; check the feature network's weights")
    return found.mean, found.covariance()


def _blocks(features: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of features in float64, some at a time: nothing else of that size is held."""
    for start in range(0, len(features), BLOCK):
        yield np.asarray(features[start : start + BLOCK], dtype=np.float64)


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


def influence(features: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """How much each image moves the Fréchet distance of these features to a Gaussian: its influence function.

    The distance's gradient is ``2 (m1 - m2)`` in the mean and ``I - T`` in the covariance, T the optimal transport
    from N(m1, S1) to N(m2, S2) (Gelbrich, Mathematische Nachrichten 147, 1990), so image x has
    ``2 (m1 - m2)^T (x - m1) + n / (n - 1) (x - m1)^T (I - T) (x - m1)``, centred. With ``S1 = A A^T``, ``S2 = B B^T``
    and ``A^T B = U s V^T`` the transport is ``A^{+T} U s U^T A^+``. The standard error of the distance is the standard
    deviation of these over sqrt(n), the infinitesimal jackknife (Efron 1982); two distances on the same prompts
    differ by as much as the differences of these vary.

    Args:
        features: [n, d], n >= 2.
        mean, covariance: of the other side, [d] and [d, d].

    Returns:
        [n] float64, mean 0.

    One feature, where the distance is (m1 - m2)^2 + (s1 - s2)^2:

    >>> x = np.array([0.0, 1.0, 5.0])
    >>> m, s = x.mean(), x.std(ddof=1)
    >>> by_hand = 2 * (m - 3) * (x - m) + (1 - 1 / s) * 3 / 2 * (x - m) ** 2
    >>> found = influence(x[:, None], np.array([3.0]), np.array([[1.0]]))
    >>> bool(np.allclose(found, by_hand - by_hand.mean()))
    True
    """
    ours, ours_covariance = moments(features)
    n = len(features)  # the covariance divides by n - 1
    if np.array_equal(ours, mean) and np.array_equal(ours_covariance, covariance):
        return np.zeros(n)
    a, b = _factor(ours_covariance), _factor(np.asarray(covariance, dtype=np.float64))
    u, s, _ = np.linalg.svd(a.T @ b, full_matrices=False)
    whiten = (a / (a**2).sum(0)) @ u  # the columns of a are orthogonal
    moved = np.concatenate([
        2 * x @ (ours - mean) + n / (n - 1) * ((x**2).sum(1) - ((x @ whiten) ** 2 * s).sum(1))
        for x in (block - ours for block in _blocks(features))
    ])  # fmt: skip
    return np.asarray(moved - moved.mean())


@dataclass(frozen=True, kw_only=True)
class FID(Evaluator):
    """Fréchet distance between feature distributions, pooled over the groups that should survive.

    - ``fid.<network>.vs_<reference>``: N images against the network's statistics of real images;
    - ``fid.<network>.vs_original``: against the original model's images of the same prompts and noise, which is 0
      for the original itself.

    The distance of a finite sample is too high, the more so the smaller N, which stands beside it as ``n``: values of
    another N, network or reference must not be compared. ``low`` and ``high`` are a 95 % interval of the distance *at
    this N*, from each image's :func:`influence` by cluster (images that share a text or a concept), as any mean has
    one. (A bootstrap repeats images, which raises the distance itself.) The influences are recorded, one a prompt, as
    ``influence.<metric>``: what two distances on the same prompts differ by has its interval from their differences.
    Fewer than 10 images get no interval.

    A network may say how few images are too few (``least_images``; Inception: 2,048, its features, below which the
    covariance has no full rank). With fewer prompts there is no number, only a status, unless ``small_sample`` asks for
    it; the metric is then ``fid.<network>.vs_<reference>.small_sample``.

    Args:
        features: the network, hashable; :class:`erasebench.judges.inception.Inception` gives the usual FID.
        groups: prompt groups pooled.
        small_sample: measure fewer images than the network wants, under a name that says so.
        version: of this definition.
    """

    features: FeatureNetwork
    groups: tuple[str, ...] = ("neighbour", "unrelated", "coco")
    small_sample: bool = False
    version: int = 3

    def __post_init__(self) -> None:
        fields.flag("evaluator.fid.small_sample", self.small_sample)
        object.__setattr__(self, "groups", fields.chosen("evaluator.fid.groups", self.groups, GROUPS, least=1))

    def check(self) -> None:
        """The network's files are there and of the right kind, as far as it says how to find out."""
        check_files(self.features)

    @property
    def headlines(self) -> tuple[Headline, ...]:
        """Against real images and against the original's; the metric's name is the label."""
        found = []
        for against, head, place in ((self._reference, "FID", 80), ("vs_original", "FID to original", 81)):
            metric = f"fid.{self.features.name}.{against}"
            found.append(
                Headline(metric=metric, group="kept", label="{metric}", head=head, place=place, role="distance")
            )
            for group in self.groups:
                found.append(Headline(metric=f"influence.{metric}", group=group, label="", place=999, role="influence"))
        return tuple(found)

    @property
    def _reference(self) -> str:
        return f"vs_{getattr(self.features, 'reference_name', 'real')}"

    @property
    def looks(self) -> tuple[FeatureLook, ...]:
        """The network's features."""
        return (FeatureLook(self.features, self.groups),)

    def score(self, images: ImageSet, original: ImageSet) -> list[Score]:
        """One or two scores of group ``kept`` and their influences; with fewer than two images made, a status."""
        chosen = images.only(self.groups)
        if not chosen.prompts:
            return []
        drawn, base = features_of(self.features, chosen), features_of(self.features, original.only(self.groups))
        scores = []
        reference = self.features.reference()
        if reference is not None:
            scores += self._scores(self._reference, chosen, list(drawn.row), drawn.values, reference[:2])
        shared = [i for i in drawn.row if i in base.row]
        scores += self._scores("vs_original", chosen, shared, drawn.of(shared), None, base.of(shared))
        return scores

    def _scores(
        self, against: str, images: ImageSet, ids: Sequence[str], ours: np.ndarray,
        reference: tuple[np.ndarray, np.ndarray] | None, others: np.ndarray | None = None,
    ) -> list[Score]:  # fmt: skip
        """The distance of features to a reference, or to others of the same prompts."""
        metric = f"fid.{self.features.name}.{against}"  # without N, which a failed image makes differ between sides
        whole = {"evaluator": "fid", "metric": metric, "group": "kept", "higher_is_better": False, "n": len(ids)}
        least = getattr(self.features, "least_images", 2)
        few = len(images.prompts) < least  # by the prompts: a failed image gives the two sides no two names
        if few and self.small_sample:
            whole["metric"] = f"{metric}.small_sample"
        elif few:
            log.warning(
                "%s: no number of %d images; %d are the least, or evaluator.fid.small_sample=true",
                metric,
                len(ids),
                least,
            )
        if len(ids) < 2 or (few and not self.small_sample):
            return [Score(value=math.nan, status="error", **whole)]  # type: ignore[arg-type]
        mean, covariance = reference or moments(others)  # type: ignore[arg-type]
        value = frechet_distance(*moments(ours), mean, covariance)
        moved = influence(ours, mean, covariance)
        if others is not None:
            moved = moved + influence(others, *moments(ours))
        return rows(Score(value=value, **whole), images.prompts, ids, moved, 0.0)  # type: ignore[arg-type]
