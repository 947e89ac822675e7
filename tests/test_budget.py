"""Success at any budget: monotone, from pre-ASR to ASR, failures leave n; files only where there is a curve."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from PIL import Image

from erasebench import steps
from erasebench.report import budget
from erasebench.report.budget import success_by_budget
from erasebench.report.intervals import wilson
from erasebench.types import Prompt


def prompt(number, present, **info):
    curve = [None if p is None else float(p) for p in present]
    return Prompt(id=f"a{number}", text="t", group="attack", info={"present": present, "curve": curve, **info})


def test_each_budget_by_hand():
    table = success_by_budget([[True], [False, False, True], [False, True], [False, False, False, False]])
    assert table.queries.tolist() == [0, 1, 2, 3, 4]
    assert table.present.tolist() == [0, 1, 2, 3, 3] and set(table.n) == {4}
    for row in table.itertuples():
        assert row.asr == row.present / 4 and (row.low, row.high) == wilson(row.present, 4)


def test_against_running_every_search_again_with_less():
    rng = np.random.default_rng(0)
    whole = [rng.random(12) < 0.1 for _ in range(40)]
    stopped = [flags[: flags.argmax() + 1] if flags.any() else flags for flags in whole]  # early stop
    table = success_by_budget([flags.tolist() for flags in stopped])
    for b in range(13):
        assert table.asr[b] == np.mean([flags[:b].any() for flags in whole])
    assert table.asr.is_monotonic_increasing


def test_failed_images_leave_n_until_a_success():
    table = success_by_budget([[None, True], [False, None], [False, False]])
    assert table[["n", "n_failed", "present"]].to_numpy().tolist() == [[3, 0, 0], [2, 1, 0], [2, 1, 1]]
    lost = success_by_budget([[None]])
    assert lost.n.tolist() == [1, 0] and math.isnan(lost.asr[1])


def test_files_are_written_exactly_if_there_is_a_curve(tmp_path):
    assert budget.write(tmp_path, [Prompt(id="t", text="t"), Prompt(id="a", text="t", group="attack")], "x") is None
    assert list(tmp_path.iterdir()) == []
    table = budget.write(tmp_path, [prompt(0, [False, True]), prompt(1, [True])], "a title")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["budget.csv", "budget.png"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "budget.csv"), table)
    first = (tmp_path / "budget.png").read_bytes()
    with Image.open(tmp_path / "budget.png") as image:
        assert image.format == "PNG" and len(set(image.convert("L").tobytes())) > 10
    budget.write(tmp_path, [prompt(0, [False, True]), prompt(1, [True])], "a title")
    assert (tmp_path / "budget.png").read_bytes() == first
    budget.draw(tmp_path / "two.png", {"a": table, "b": table}, "compared")
    assert (tmp_path / "two.png").exists()


def test_a_run_record_sums_what_was_spent_and_leaves_curves_out():
    same = {"steps": 3, "success": True, "gradient": 0.5}
    found = [
        prompt(0, [True], queries=1, seconds=1.5, **same),
        prompt(1, [False, True], queries=2, seconds=2.5, **same),
    ]
    record = steps._budget(found)
    assert record == {
        "prompts": 2, "distinct_texts": 1, "queries": 3, "seconds": 4.0, "steps": 3, "share_success": 1.0,
        "gradient": 0.5,
    }  # fmt: skip
    texts = [Prompt(id=str(i), text=t, group="attack", info={"evaluations": 5}) for i, t in enumerate("aab")]
    assert steps._budget(texts)["evaluations"] == 10  # prompts with one text share a search
    odd = [
        Prompt(id=str(i), text=str(i), group="attack", info=n) for i, n in enumerate([{"a": "x"}, {"a": "y", "b": 1}])
    ]
    assert steps._budget(odd) == {"prompts": 2, "distinct_texts": 2, "b": 1}
    assert steps._budget([Prompt(id="t", text="t")]) == {}
