"""The board of methods: pooled once, ranked only where shown, never across versions; and the pairs behind it."""

import numpy as np
import pandas as pd
import pytest

from erasebench import leaderboard
from erasebench.report import board_text
from erasebench.report.board import COST, boards
from erasebench.report.pairs import compare_all
from erasebench.report.pooling import items
from erasebench.report.series import tables
from erasebench.report.tables import read_summaries, read_summary, scores_frame, summarise, write_csv, write_scores
from erasebench.types import Headline, Score

CONCEPTS = ("cat", "car", "sun", "gun")
GROUPS = {"target": ("present", False), "attack": ("present", False), "unrelated": ("kept", True)}
HEADLINES = {
    "e": [
        Headline(metric=group, group=group, label=group, head=group, place=i, unit="%", role=role)
        for i, (group, (role, _)) in enumerate(GROUPS.items())
    ]
    + [Headline(metric="fid", group="kept", label="FID", head="FID", place=9, role="distance")]
}


def cell(method, concept, rates, attack="none", version=1, n=40, status="ok", judge="j", access="text_encoder"):
    """One run: a rate for each group; the original model draws everything."""
    run = f"{method}-{concept}-{attack}-{version}"
    names = {"model": "m", "concept": concept, "method": method, "recipe": "paper", "attack": attack, "settings": ""}
    names |= {"budget": "paper", "access": access if attack != "none" else "none", "strength": "text", "control": False}
    parts = []
    for side in ("erased", "original"):
        rows = []
        for group, rate in rates.items():
            better = GROUPS[group][1]
            for i in range(n):
                value = float(i < rate * n) if side == "erased" else 1.0
                known = {} if status == "ok" else {"status": status}
                value = value if status == "ok" else float("nan")
                rows.append(
                    Score(
                        evaluator="e", metric=group, group=group, prompt_id=f"{group}-{i}", value=value, judge=judge,
                        higher_is_better=better, **known,
                    )
                )  # fmt: skip
        fid = 10.0 * (1 - rates.get("unrelated", 1.0)) if side == "erased" else 0.0
        rows.append(Score(evaluator="e", metric="fid", group="kept", value=fid, low=fid, high=fid + 1, n=n))
        facts = {"run": run, "cell": names, "versions": {"e": version}, "headlines": HEADLINES}
        parts.append(scores_frame(rows, side=side, weights=f"{method}-{concept}" * (side == "erased"), **facts))
    return pd.concat(parts)


def world(**more):
    """Three methods on four concepts: one erases, one erases and wrecks, one does nothing."""
    plain = {"good": (0.0, 1.0), "wreck": (0.0, 0.3), "weak": (0.9, 1.0)}
    parts = []
    for method, (target, kept) in plain.items():
        for concept in CONCEPTS:
            parts.append(cell(method, concept, {"target": target, "unrelated": kept}, **more))
            parts.append(cell(method, concept, {"target": target, "attack": target, "unrelated": kept}, "a", **more))
    return pd.concat(parts, ignore_index=True)


def facts(scores):
    runs = sorted(set(scores.run))
    return pd.DataFrame({"run": runs, "task": "object", "flags": "", **dict.fromkeys(COST, 1.0)})


def board(scores):
    (only,) = boards(scores, facts(scores))
    return only, only.table.set_index("row")


def test_a_method_is_one_row_pooled_over_concepts_and_attacks_count_plain_images_once():
    _, table = board(world())
    assert list(table.index) == ["original model", "good", "wreck", "weak"]  # the front first
    assert table.target.round(3).to_dict() == {"original model": 1.0, "good": 0.0, "wreck": 0.0, "weak": 0.9}
    assert (table.target_n == 160).all() and (table.target_concepts == 4).all()
    assert table.loc["weak", "a"] == 0.9 and table.loc["original model", "a"] == 1.0
    assert table.loc["wreck", "fid"] == pytest.approx(7.0) and table.loc["wreck", "fid_n"] == 4
    assert (table.measured == 8).all() and (table.asked == 8).all()


def test_ranks_and_front_follow_what_is_shown():
    found, table = board(world())
    assert table.target_rank.drop("original model").to_dict() == {"good": 1, "wreck": 1, "weak": 3}
    assert table.unrelated_rank.drop("original model").to_dict() == {"good": 1, "wreck": 3, "weak": 1}
    assert table.front.to_dict() == {"original model": False, "good": True, "wreck": False, "weak": False}
    assert table.behind["wreck"] == "good" and table.behind["weak"] == "good"
    assert np.isnan(table.loc["original model", "target_rank"])
    assert next(c for c in found.columns if c.name == "target").better is False


def test_a_difference_of_few_images_is_a_tie():
    parts = [cell(m, c, {"target": r, "unrelated": 1.0}) for m, r in (("x", 0.05), ("y", 0.075)) for c in CONCEPTS]
    _, table = board(pd.concat(parts))
    assert (table.target_rank.dropna() == 1).all() and table.front.sum() == 2


def test_one_concept_is_about_itself_and_keeps_the_interval_of_its_whole_group():
    _, table = board(cell("x", "cat", {"target": 0.5, "unrelated": 1.0}))
    row = table.loc["x"]
    assert row.target_concepts == 1 and row.target_low > 0.3 and row.target_high < 0.7
    assert (row.fid_low, row.fid_high) == (0.0, 1.0)


def test_order_duplicates_and_failures_change_no_value():
    scores = world()
    expected = board_text.wide(boards(scores, facts(scores)))
    mixed = scores.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(board_text.wide(boards(mixed, facts(mixed))), expected)
    doubled = pd.concat([scores, scores.assign(run=scores.run + "-again")])
    pd.testing.assert_frame_equal(board_text.wide(boards(doubled, facts(doubled))), expected)
    failed = pd.concat([scores, cell("good", "owl", {"target": 1.0}, status="nan")])
    _, table = board(failed)
    assert table.loc["good", "target_n"] == 160 and table.loc["good", "target"] == 0.0


def test_another_version_of_an_evaluator_is_a_column_of_its_own():
    both = pd.concat([world(), cell("new", "cat", {"target": 0.5, "unrelated": 1.0}, version=2)])
    found, table = board(both)
    titles = [c.title for c in found.columns if c.facts["head"] == "target"]
    assert titles == ["target (v1)", "target (v2)"]
    assert np.isnan(table.loc["new", "target__v1"]) and np.isnan(table.loc["good", "target__v2"])


def test_attacks_that_look_at_the_model_ask_the_original_only_where_it_was_attacked():
    static = cell("x", "cat", {"target": 0.0, "attack": 0.5}, "a")
    adaptive = cell("x", "cat", {"target": 0.0, "attack": 0.5}, "b", access="model")
    _, table = board(pd.concat([static, adaptive]))
    assert table.loc["original model", "a"] == 1.0 and np.isnan(table.loc["original model", "b"])


def test_the_text_says_ranks_floors_and_coverage_and_escapes():
    scores = world()
    scores.loc[scores.method == "weak", "method"] = "<script>alert(1)</script>"
    found, _ = board(scores)
    lines = board_text.grid(found)
    assert "target ↓" in lines[0] and any("(1)" in c for c in lines[2])
    assert "Resolution floor" in board_text.legend(found) and "8/8" in lines[1]
    assert "<script>" not in board_text.page([found], [["x"], ["<script>"]]) + board_text.markdown([found])


@pytest.fixture
def folder(tmp_path):
    for run, part in world().groupby("run"):
        write_scores(tmp_path / "runs" / str(run) / "scores.parquet", part)
    return tmp_path


def test_filters_choose_and_name_what_exists(folder, capsys):
    assert leaderboard.main([f"results={folder}", "methods=good,weak", "concepts=cat,car,sun"]) == 0
    table = pd.read_csv(folder / "leaderboard.csv")
    assert set(table["row"]) == {"original model", "good", "weak"} and (table.target_concepts == 3).all()
    capsys.readouterr()
    for bad in ("methods=nope", "concepts=nope", "attack=nope", "model=nope"):
        assert leaderboard.main([f"results={folder}", bad]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "must be one of" in said and "'nope'" in said


def test_the_files_are_the_same_twice_and_hold_the_cells(folder):
    names = ("leaderboard.csv", "leaderboard.md", "leaderboard.html", "leaderboard_cells.csv")
    assert leaderboard.main([f"results={folder}"]) == 0
    first = [(folder / name).read_bytes() for name in names]
    assert leaderboard.main([f"results={folder}"]) == 0
    assert first == [(folder / name).read_bytes() for name in names]
    assert len(pd.read_csv(folder / "leaderboard_cells.csv")) == 24


def test_items_are_each_image_once_as_reading_row_by_row_finds_them():
    scores = pd.concat([world(), world(access="model").assign(attack="b", run=lambda frame: frame.run + "-b")])
    expected = {}
    for row in scores[scores.prompt_id.notna()].itertuples():
        attacked, original = row.group == "attack", row.side == "original"
        if not (attacked and original and row.access == "model"):
            method, attack = "none" if original else row.method, row.attack if attacked else ""
            expected.setdefault((method, attack, row.head, row.concept, row.prompt_id), row.value)
    found = [
        ((one.row[0], one.column[0], one.fact.head, one.concept, prompt), value)
        for one in items(tables(scores), {}) if not one.fact.whole
        for prompt, value in zip(one.places.ids, one.value.tolist(), strict=True)
    ]  # fmt: skip
    assert len(found) == len(expected) and dict(found) == expected


def test_a_summary_of_many_concepts_is_those_of_each():
    scores = world()
    parts = [summarise(part) for _, part in scores.groupby("concept")]
    pd.testing.assert_frame_equal(summarise(scores), pd.concat(parts, ignore_index=True))
    shuffled = scores.sample(frac=1, random_state=0)  # its index too
    pd.testing.assert_frame_equal(summarise(shuffled), summarise(scores))


def test_summaries_read_together_are_those_read_alone(tmp_path):
    paths = []
    for name in ("good", "=weak"):  # one is a formula in a spreadsheet
        frame = summarise(cell(name, "cat", {"target": 0.5, "unrelated": 1.0}))
        paths.append(write_csv(tmp_path / f"{name[-4:]}.csv", frame))
    together = read_summaries(paths)
    for i, path in enumerate(paths):
        pd.testing.assert_frame_equal(together.loc[[i]].reset_index(drop=True), read_summary(path))


def test_pairs_need_evidence():
    rng = np.random.default_rng(0)
    same = rng.random((2, 60))
    assert not compare_all(same, [np.arange(60)]).told_apart().any()
    few = np.array([[1.0] * 5, [0.0] * 5])  # no variance, and yet five images: 1/16
    assert compare_all(few, [np.arange(5)]).p[0] == pytest.approx(1 / 16)
    gaps = np.array([[0.0] * 30 + [np.nan] * 30, [np.nan] * 30 + [1.0] * 30])
    assert np.isnan(compare_all(gaps, [np.arange(60)]).p).all()


@pytest.mark.slow
@pytest.mark.parametrize("concepts", [3, 6, 20])
def test_methods_that_are_equal_are_told_apart_seldom(concepts):
    """Two methods with the same rates on average, concepts erased unevenly well: at most 6 % of 2,000."""
    rng = np.random.default_rng(concepts)
    concept, text = np.repeat(np.arange(concepts), 50), np.arange(50 * concepts)
    found = 0
    for _ in range(2000):
        rates = np.clip(rng.normal(0.3, 0.15, (2, concepts)), 0, 1)[:, concept]
        found += compare_all((rng.random(rates.shape) < rates).astype(float), [text, concept]).p[0] < 0.05
    assert found / 2000 < 0.06
