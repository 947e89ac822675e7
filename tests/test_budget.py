"""Success at any budget: monotone, from pre-ASR to ASR, failures leave n; files only where there is a curve."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from erasebench import recording
from erasebench.report import budget, clusters
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


def test_prompts_that_share_a_search_are_one_cluster():
    present = [[False, True]] * 6 + [[False, False]] * 6
    alone, shared = success_by_budget(present), success_by_budget(present, [*"aaabbbcccddd"])
    assert alone.clusters.tolist() == [12] * 3 and shared.clusters.tolist() == [4] * 3
    last = shared.iloc[-1]
    assert (last.low, last.high) == clusters.rate([1.0] * 6 + [0.0] * 6, [*"aaabbbcccddd"])
    assert last.high - last.low > 1.5 * (alone.high - alone.low).iloc[-1]
    few = success_by_budget(present, ["a"] * 6 + ["b"] * 6)
    assert few.asr.iloc[-1] == 0.5 and math.isnan(few.low.iloc[-1])
    twice = budget.pooled([shared, shared])
    assert twice.n.tolist() == [24] * 3 and (twice.low.iloc[-1], twice.high.iloc[-1]) == (last.low, last.high)


def test_an_older_or_broken_table_is_one_line(tmp_path):
    success_by_budget([[True]]).drop(columns="clusters").to_csv(tmp_path / "budget.csv", index=False)
    with pytest.raises(ValueError, match="no column 'clusters', an older version"):
        budget.read(tmp_path / "budget.csv")
    (tmp_path / "budget.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no readable table"):
        budget.read(tmp_path / "budget.csv")


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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["budget.csv", "budget.pdf", "budget.png"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "budget.csv"), table)
    first, paper = (tmp_path / "budget.png").read_bytes(), (tmp_path / "budget.pdf").read_bytes()
    with Image.open(tmp_path / "budget.png") as image:
        assert image.format == "PNG" and len(set(image.convert("L").tobytes())) > 10
    budget.write(tmp_path, [prompt(0, [False, True]), prompt(1, [True])], "a title")
    assert (tmp_path / "budget.png").read_bytes() == first
    assert (tmp_path / "budget.pdf").read_bytes() == paper and paper.startswith(b"%PDF")
    budget.draw(tmp_path / "two.png", {"a": table, "b": table}, "compared")
    assert (tmp_path / "two.png").exists()


def drawn(path, tables, **more):
    budget.draw(path, tables, "title", **more)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), int)


def near(pixels, colour, within=12):
    """Where a picture has a colour, as a mask [height, width]."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(pixels - wanted) <= within).all(axis=2)


def test_a_curve_rises_at_whole_numbers_and_is_level_between(tmp_path):
    present = [[False, False, True]] * 5 + [[False, False, False, False, True]] * 5
    pixels = drawn(tmp_path / "a.png", {"p4d": success_by_budget(present)})
    line = near(pixels, budget.colour("p4d"))
    tall = np.flatnonzero(line.sum(axis=0) > 60)  # columns in which the line goes up by half of the axis
    rises = [run[0] for run in np.split(tall, np.flatnonzero(np.diff(tall) > 1) + 1)]
    level = np.flatnonzero(line.any(axis=0))
    one_image = (level[-1] - level[0]) / (4 + budget.LAST)
    assert [round((x - level[0]) / one_image, 1) for x in rises] == pytest.approx([2, 4], abs=0.1)  # images 3 and 5


def test_an_attack_has_one_colour_in_every_figure(tmp_path):
    shipped = ["p4d", "p4d_k", "p4d_n", "unlearndiffatk", "inverse_edit"]
    assert len({budget.colour(name) for name in shipped}) == len(shipped)
    tables = {name: success_by_budget([[i % 7 == k, True] for i in range(20)]) for k, name in enumerate(shipped)}
    for some in (shipped[:2], shipped, shipped[::-1]):
        found = budget.styles({name: tables[name] for name in some})
        assert {name: style["color"] for name, style in found.items()} == {name: budget.colour(name) for name in some}
    variants = budget.styles(dict.fromkeys(("p4d", "p4d[restarts=3]"), tables["p4d"]))
    assert len({style["color"] for style in variants.values()}) == 1  # one attack
    assert len({str(style["ls"]) for style in variants.values()}) == 2  # two lines


def test_controls_are_grey_whatever_they_are_called(tmp_path):
    table = success_by_budget([[False, True], [False, False]])
    pixels = drawn(tmp_path / "a.png", {"luck": table, "p4d": table}, controls=["luck"])
    assert near(pixels, budget.GREY).any() and near(pixels, budget.colour("p4d")).any()
    assert not near(pixels, budget.colour("luck")).any() or budget.colour("luck") == budget.colour("p4d")
    alone = drawn(tmp_path / "b.png", {"luck": table}, controls=["luck"])
    assert not any(near(alone, colour).any() for colour in budget.COLOURS)


def test_a_run_record_sums_what_was_spent_and_leaves_curves_out():
    same = {"steps": 3, "success": True, "gradient": 0.5}
    found = [
        prompt(0, [True], queries=1, seconds=1.5, **same),
        prompt(1, [False, True], queries=2, seconds=2.5, **same),
    ]
    record = recording.spent(found)
    assert record == {
        "prompts": 2, "distinct_texts": 1, "queries": 3, "seconds": 4.0, "steps": 3, "share_success": 1.0,
        "gradient": 0.5,
    }  # fmt: skip
    texts = [Prompt(id=str(i), text=t, group="attack", info={"evaluations": 5}) for i, t in enumerate("aab")]
    assert recording.spent(texts)["evaluations"] == 10  # prompts with one text share a search
    odd = [
        Prompt(id=str(i), text=str(i), group="attack", info=n) for i, n in enumerate([{"a": "x"}, {"a": "y", "b": 1}])
    ]
    assert recording.spent(odd) == {"prompts": 2, "distinct_texts": 2, "b": 1}
    assert recording.spent([Prompt(id="t", text="t")]) == {}
