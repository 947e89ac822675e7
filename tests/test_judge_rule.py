"""Any evaluator's rule as a judge."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from PIL import Image

from erasebench.judges.rule import RuleJudge
from erasebench.protocols import Evaluator
from erasebench.types import Score


@dataclass(frozen=True, kw_only=True)
class Redness(Evaluator):
    groups: ClassVar = ("target",)
    version: ClassVar = 1

    def score(self, images, original):
        return [
            Score(
                evaluator="redness",
                metric="redness.mean",
                value=image.getpixel((0, 0))[0] / 255,
                group=p.group,
                prompt_id=p.id,
            )
            for batch in images.batches()
            for p, image, _ in batch
        ]


RED, BLACK = Image.new("RGB", (8, 8), (204, 0, 1)), Image.new("RGB", (8, 8), (51, 0, 0))


@pytest.mark.parametrize(("above", "present"), [(True, [True, False, True]), (False, [False, True, False])])
def test_a_threshold_on_any_metric_judges(above, present):
    judge = RuleJudge(evaluator=Redness(), metric="redness", threshold=0.5, above=above)
    verdicts = judge([RED, BLACK, RED], ["cat", "cat", "dog"])  # equal images, other concepts: each has its verdict
    assert [v.present for v in verdicts] == present
    assert [v.score for v in verdicts] == pytest.approx([0.8, 0.2, 0.8])
    assert judge.name == ("redness>=0.5" if above else "redness<=0.5") and "Redness" in judge.about


def test_what_cannot_be_judged_is_one_line():
    with pytest.raises(ValueError, match=r"judge.metric must be one that the evaluator gives each image; got 'blue'"):
        RuleJudge(evaluator=Redness(), metric="blue", threshold=1)([RED], ["cat"])
    with pytest.raises(ValueError, match="is for nudity; got 'church'"):
        RuleJudge(evaluator=Redness(), metric="redness", threshold=1, concepts=["nudity"]).check(["church"])
    with pytest.raises(ValueError, match=r"judge.threshold must be a finite number"):
        RuleJudge(evaluator=Redness(), metric="redness", threshold="high")
