"""The tidy table and its summary: what is counted, what is paired, and that errors never become numbers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from erasebench.report import tables
from erasebench.report.intervals import exact_paired, mcnemar, wilson
from erasebench.types import Headline, Prompt, Score
from tests.cells import HEADLINES, cell

NAN = math.nan


def hit(prompt_id, value, *, metric="concept_present.j.top1", group="target", relation="", status="ok", better=False):
    return Score(
        evaluator="classifier", metric=metric, value=value, group=group, prompt_id=prompt_id, relation=relation,
        status=status, higher_is_better=better,
    )  # fmt: skip


def frame(erased, original=(), **changes):
    named = {"run": "r0", "cell": cell(), "versions": {"classifier": 1, "fid": 2}, "headlines": HEADLINES, **changes}
    sides = (("erased", erased), ("original", original))
    return pd.concat([tables.scores_frame(rows, side=side, **named) for side, rows in sides], ignore_index=True)


def only(summary, **where):
    for column, value in where.items():
        summary = summary[summary[column] == value]
    assert len(summary) == 1, summary
    return summary.iloc[0]


def test_the_columns_are_the_schema():
    table = frame([hit("target-0", 1.0)])
    assert list(table.columns) == [
        "run", "model", "concept", "method", "recipe", "attack", "budget", "settings", "access", "strength", "control",
        "group", "relation", "evaluator", "evaluator_version", "metric", "judge", "prompt_id", "seed", "value",
        "status", "side", "low", "high", "higher_is_better", "cluster", "weights", "rate",
        "terms", "images", "role", "label", "head", "unit", "place",
    ]  # fmt: skip
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == dict(tables.DTYPES)


def test_seeds_come_from_the_prompts_of_the_same_group():
    prompts = [Prompt(id="0", text="a", seed=7), Prompt(id="0", text="b", seed=2**40, group="coco")]
    table = frame([hit("0", 1.0), hit("0", 1.0, group="coco"), hit(None, 0.5)], prompts=prompts)
    assert table.seed.fillna(-1).tolist() == [2**40, -1, 7]


@pytest.mark.parametrize(
    ("score", "changes", "message"),
    [
        (hit("0", NAN), {}, "value must be finite if and only if status is ok"),
        (hit("0", 0.0, status="error"), {}, "value must be finite if and only if status is ok"),
        (hit("0", math.inf), {}, "value must be finite"),
        (hit("0", NAN, status="failed"), {}, "status must be one of ok, nan, constant, error"),
        (hit("0", 1.0), {"versions": {"fid": 1}}, "versions must name its evaluator; got fid"),
    ],
)
def test_contradictions_are_refused(score, changes, message):
    with pytest.raises(ValueError, match=message):
        frame([score], **changes)
    with pytest.raises(ValueError, match="side must be"):
        tables.scores_frame([], run="r", side="both", versions={}, cell=cell())
    with pytest.raises(ValueError, match="two of concept_present"):
        frame([hit("0", 1.0), hit("0", 0.0)])


def test_a_table_survives_its_file_and_equal_tables_are_equal_files(tmp_path):
    rows = [hit(f"p{i}", float(i % 2)) for i in range(20)] + [hit("bad", NAN, status="nan"), hit(None, 0.25)]
    table = frame(rows, rows)
    first = tables.write_scores(tmp_path / "a" / "scores.parquet", table)
    second = tables.write_scores(tmp_path / "b.parquet", table.sample(frac=1, random_state=1))
    assert first.read_bytes() == second.read_bytes()
    back = tables.read_scores(first)
    assert {n: str(d) for n, d in back.dtypes.items()} == dict(tables.DTYPES)
    pd.testing.assert_frame_equal(back, tables.read_scores(second))
    assert back.prompt_id.isna().sum() == 2 and back.status.value_counts()["nan"] == 2


def test_a_bad_file_is_one_line(tmp_path):
    path = tables.write_scores(tmp_path / "scores.parquet", frame([hit("0", 1.0)]))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a readable Parquet file; delete it"):
        tables.read_scores(path)
    with pytest.raises(FileNotFoundError, match="does not exist; run the cell"):
        tables.read_scores(tmp_path / "other.parquet")
    pd.DataFrame({"value": [1.0]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"has no column 'run', .* found value"):
        tables.read_scores(path)
    with pytest.raises(FileNotFoundError, match=r"no scores.parquet under .*run `python -m erasebench` first"):
        tables.read_results(tmp_path / "nowhere")


def test_results_of_several_runs_are_read_together(tmp_path):
    for run in ("r0", "r1"):
        tables.write_scores(tmp_path / "runs" / "emoji" / run / "scores.parquet", frame([hit("0", 1.0)], run=run))
    assert tables.read_results(tmp_path).run.tolist() == ["r0", "r1"]


def test_rates_are_counted_paired_and_tested():
    erased = [hit(f"p{i:02d}", float(i < 5)) for i in range(50)]  # 5 of 50 left
    original = [hit(f"p{i:02d}", float(i != 0)) for i in range(50)]  # 49 of 50
    row = only(tables.summarise(frame(erased, original)))
    assert (row.n, row.n_failed, row["mean"], row.base) == (50, 0, 0.1, 0.98)
    assert (row.low, row.high) == wilson(5, 50) and (row.base_low, row.base_high) == wilson(49, 50)
    assert row.delta == pytest.approx(-0.88) and row.p_value == mcnemar(1, 45)
    assert (row.delta_low, row.delta_high) == exact_paired(4, 1, 45, 0)
    assert row.higher_is_better is np.False_ or row.higher_is_better is False


def test_failures_are_counted_and_enter_nothing_else():
    erased = [hit("a", 1.0), hit("b", 0.0), hit("c", NAN, status="nan"), hit("d", NAN, status="error"), hit("e", 1.0)]
    original = [hit("a", 1.0), hit("b", 1.0), hit("c", 1.0), hit("d", 0.0), hit("e", NAN, status="constant")]
    row = only(tables.summarise(frame(erased, original)))
    assert (row.n, row.n_failed) == (3, 2) and row["mean"] == pytest.approx(2 / 3) and row.base == 0.75
    assert row.delta == -0.5  # over a and b, the prompts that are ok on both sides


def test_a_group_that_failed_altogether_has_no_numbers():
    row = only(tables.summarise(frame([hit("a", NAN, status="error")], [hit("a", 1.0)])))
    assert (row.n, row.n_failed, row.base) == (0, 1, 1.0)
    assert all(math.isnan(row[c]) for c in ("mean", "low", "high", "delta", "delta_low", "p_value"))


def test_means_have_student_s_interval_and_no_p_value():
    clip = {"metric": "clip_score.m", "better": True}
    erased = [hit(f"p{i}", 20.0 + i, **clip) for i in range(10)]
    original = [hit(f"p{i}", 21.0 + i, **clip) for i in range(10)]
    row = only(tables.summarise(frame(erased, original)))
    assert row["mean"] == 24.5 and (row.low, row.high) == pytest.approx(
        stats.ttest_1samp([20.0 + i for i in range(10)], 0).confidence_interval()
    )
    assert (row.delta, row.delta_low, row.delta_high) == (-1.0, -1.0, -1.0)  # paired: the prompts' spread cancels
    assert math.isnan(row.p_value) and bool(row.higher_is_better)


def test_one_value_beyond_0_and_1_makes_a_metric_a_mean_in_every_group():
    count = {"metric": "count@0.6"}
    rows = [
        hit("a", 0.0, **count),
        hit("b", 1.0, **count),
        hit("c", 2.0, group="attack", **count),
        hit("d", 0.0, group="attack", **count),
    ]
    row = only(tables.summarise(frame(rows, rows)), group="target")
    assert math.isnan(row.p_value) and math.isnan(row.low)  # two values say little of their spread


def test_neighbours_are_summarised_per_relation_and_together():
    near = {"metric": "accuracy.j.top1", "group": "neighbour", "better": True}
    rows = [
        hit("a", 1.0, relation="visual", **near),
        hit("b", 0.0, relation="visual", **near),
        hit("c", 1.0, relation="binomial", **near),
    ]
    summary = tables.summarise(frame(rows, rows))
    assert {r.relation: r.n for r in summary.itertuples()} == {"": 3, "binomial": 1, "visual": 2}
    assert (
        only(summary, relation="")["mean"] == pytest.approx(2 / 3) and only(summary, relation="visual")["mean"] == 0.5
    )


def test_a_metric_of_a_whole_group_keeps_its_own_interval():
    def fid(value, low, high):
        return Score(
            evaluator="fid", metric="fid.n100", value=value, group="kept", low=low, high=high, higher_is_better=False
        )

    row = only(tables.summarise(frame([fid(30.0, 28.0, 33.0)], [fid(10.0, 9.0, 11.0)])))
    assert (row["mean"], row.low, row.high, row.base, row.base_low, row.base_high) == (
        30.0,
        28.0,
        33.0,
        10.0,
        9.0,
        11.0,
    )
    assert row.delta == 20.0 and math.isnan(row.delta_low) and row.evaluator_version == 2
    two = pd.concat([frame([fid(30.0, 28.0, 33.0)]), frame([fid(40.0, 36.0, 45.0)], run="r1")])
    row = only(tables.summarise(two))
    assert (row["mean"], row.n, row.low, row.high) == (35.0, 2, 32.0, 39.0)  # one training: the mean of the margins


def test_evaluator_versions_and_recipes_are_never_pooled():
    parts = [frame([hit("a", 1.0)]), frame([hit("a", 0.0)], run="r1", versions={"classifier": 2}),
             frame([hit("a", 0.0)], run="r2", cell=cell(recipe="uce_emoji"))]  # fmt: skip
    assert tables.summarise(pd.concat(parts))["n"].tolist() == [1, 1, 1]


def test_the_same_prompt_in_two_runs_is_two_pairs():
    both = pd.concat([frame([hit("a", 0.0)], [hit("a", 1.0)], run=run) for run in ("r0", "r1")])
    row = only(tables.summarise(both))
    assert row.n == 2 and row.delta == -1.0 and row.p_value == mcnemar(0, 2)


VALUE = st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0]), st.sampled_from(["target", "attack"]))


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(st.lists(VALUE, min_size=1, max_size=30), st.randoms())
def test_the_summary_does_not_depend_on_the_order_of_rows(values, random):
    erased = [hit(f"p{i}", e, group=g) for i, (e, _, g) in enumerate(values)]
    original = [hit(f"p{i}", o, group=g) for i, (_, o, g) in enumerate(values)]
    table = frame(erased, original)
    summary = tables.summarise(table)
    pd.testing.assert_frame_equal(summary, tables.summarise(table.sample(frac=1, random_state=random.randrange(99))))
    assert list(summary.columns) == list(tables.SUMMARY) and summary.n.sum() == len(values)
    for row in summary.itertuples():
        chosen = [(e, o) for e, o, g in values if g == row.group]
        assert row.mean == pytest.approx(np.mean([e for e, _ in chosen]))
        assert row.delta == pytest.approx(row.mean - row.base) and row.delta_low <= row.delta <= row.delta_high


def test_an_empty_table_has_an_empty_summary(tmp_path):
    summary = tables.summarise(frame([]))
    assert summary.empty and list(summary.columns) == list(tables.SUMMARY)
    assert tables.write_csv(tmp_path / "summary.csv", summary).read_text() == ",".join(tables.SUMMARY) + "\n"


# --- headlines, integers, tables of older versions ---


def test_a_score_takes_the_facts_of_its_headline():
    named = {
        "classifier": (
            Headline(metric="sharp", group="target", label="{metric}!", head="sharp", place=7, unit="%", role="kept"),
            Headline(metric="sharp.x", group="target", label="never: the first that fits is taken"),
        )
    }
    rows = [hit("a", 1.0, metric="sharp.x.v2"), hit("a", 1.0, metric="sharper"), hit("a", 1.0, group="coco")]
    table = frame(rows, headlines=named).set_index("metric")
    assert table.loc["sharp.x.v2", list(tables.FACTS)].tolist() == ["kept", "sharp.x.v2!", "sharp", "%", 7]
    assert table.loc["sharper", "label"] == "" and pd.isna(table.loc["sharper", "place"])
    row = only(tables.summarise(frame(rows, headlines=named)), metric="sharp.x.v2")
    assert (row.role, row.label, row["head"], row.unit, row.place) == ("kept", "sharp.x.v2!", "sharp", "%", 7)


def test_a_summary_survives_its_file(tmp_path):
    rows = [hit("a", 1.0, relation="visual"), hit("b", 0.1, metric="probability.j"), hit(None, 0.5, metric="fid")]
    summary = tables.summarise(frame(rows, rows, cell=cell(control=True)))
    back = tables.read_summary(tables.write_csv(tmp_path / "summary.csv", summary))
    pd.testing.assert_frame_equal(back, summary)
    (tmp_path / "summary.csv").write_text("model,concept\nemoji,cat\n")
    with pytest.raises(ValueError, match=r"summary.csv has no column 'method', an older version wrote it"):
        tables.read_summary(tmp_path / "summary.csv")


def test_seeds_keep_every_digit_beside_prompts_without_one(tmp_path):
    seeds = [2**63 - 1, 2**53 + 1, 0]
    prompts = [Prompt(id=f"p{i}", text="a", seed=seed) for i, seed in enumerate(seeds)]
    table = frame([hit(None, 0.5), *(hit(f"p{i}", 1.0) for i in range(3))], prompts=prompts)
    back = tables.read_scores(tables.write_scores(tmp_path / "runs" / "scores.parquet", table))
    for one in (table, back, tables.read_results(tmp_path)):
        assert dict(zip(one.prompt_id, one.seed, strict=True))["p0"] == 2**63 - 1
        assert sorted(one.seed.dropna()) == sorted(seeds) and one.seed.isna().sum() == 1


@pytest.mark.parametrize("missing", ["budget", "settings", "strength", "judge", "place"])
def test_a_table_of_an_older_version_is_one_line(tmp_path, missing):
    path = tables.write_scores(tmp_path / "runs" / "a" / "scores.parquet", frame([hit("0", 1.0)]))
    pd.read_parquet(path).drop(columns=missing).to_parquet(path)
    for read in (lambda: tables.read_scores(path), lambda: tables.read_results(tmp_path, headlines=True)):
        with pytest.raises(ValueError, match=rf"{path} has no column '{missing}', an older version .* run its cell ag"):
            read()


def test_only_headlines_are_read_where_nothing_else_is_wanted(tmp_path):
    table = frame([hit("0", 1.0), hit("0", 1.0, metric="probability.j")])
    tables.write_scores(tmp_path / "runs" / "scores.parquet", table)
    assert tables.read_results(tmp_path, headlines=True).metric.tolist() == ["concept_present.j.top1"]


@pytest.mark.parametrize("where", ["budget", "settings", "strength", "recipe"])
def test_rows_that_differ_in_how_they_were_run_stay_apart(where):
    both = pd.concat([frame([hit("a", 1.0)]), frame([hit("a", 0.0)], run="r1", cell=cell(**{where: "other"}))])
    assert sorted(tables.summarise(both)["mean"]) == [0.0, 1.0]
