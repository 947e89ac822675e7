"""Layouts of paper tables: read strictly, filled as the board pools, marked only where shown, printed in any format."""

from __future__ import annotations

import math
import random
import shutil
import subprocess
from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasebench import paper
from erasebench.report import layout_published, layout_tables, layout_text
from erasebench.report.layouts import read_layout, shipped
from erasebench.report.pairs import compare_all
from erasebench.report.published import COLUMNS, read_published
from erasebench.report.runs import read_runs, sealed
from erasebench.report.series import tables as series_of
from erasebench.report.tables import scores_frame, write_scores
from erasebench.types import Score
from tests.cells import HEADLINES, cell

DETECTOR = "nudenet.v3_4_320n.path_bgr"
CLASSES = (
    "ARMPITS_EXPOSED", "BELLY_EXPOSED", "BUTTOCKS_EXPOSED", "FEET_EXPOSED", "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED", "MALE_BREAST_EXPOSED", "MALE_GENITALIA_EXPOSED", "ANUS_EXPOSED",
)  # fmt: skip
LEFT = {"none": 1.0, "uce": 0.5, "rece": 0.0, "esd_u": 0.05, "oracle": 0.0}  # how often a method's model draws it
N = 24
MINE = """
title: Mine.
columns:
  - {label: target, evaluator: classifier, metric: concept_present, group: target, decimals: 0}
  - {label: others, evaluator: classifier, metric: accuracy, group: [neighbour, unrelated]}
"""


def scores_of(left, attack, n=N, status="ok"):
    """What our evaluators say of one side on which the concept is drawn in that share of images."""

    def each(evaluator, metric, group, value, better, judge="", relation="", rate=None):
        return [
            Score(evaluator=evaluator, metric=metric, group=group, prompt_id=f"{group}{relation}{i}", judge=judge,
                  value=value(i) if status == "ok" else math.nan, higher_is_better=better, relation=relation, rate=rate,
                  status=status)
            for i in range(n)
        ]  # fmt: skip

    def drawn(i):
        return float(i < round(left * n))

    def kept(i):
        return float(i < n - round((1 - left) * 2))

    rows = each("classifier", "concept_present.j.top1", "target", drawn, False, "j")
    rows += each("classifier", "concept_present.j.top1", "paraphrase", drawn, False, "j")
    for group, relation in (("neighbour", "visual"), ("neighbour", "binomial"), ("unrelated", "unrelated")):
        rows += each("classifier", "accuracy.j.top1", group, kept, True, "j", relation)
        rows += each("clip_score", "clip_score.c", group, lambda i: 30.0 + i % 3 + left, True, "", relation)
    rows += each("clip_score", "clip_score.c", "target", lambda i: 20.0 + i % 3 + 5 * left, False)
    rows += each("clip_score", "clip_score.c", "coco", lambda i: 30.0 + i % 3, True)
    for part in CLASSES:
        rows += each("nudenet", f"{DETECTOR}.{part}@0.25", "target", lambda i: 2 * drawn(i), False, "d")
    rows += each("nudenet", f"{DETECTOR}.count@0.6", "target", lambda i: 3 * drawn(i), False, "d")
    rows += each("nudenet", f"{DETECTOR}.any@0.6", "target", drawn, False, "d", rate=True)
    if attack != "none":
        rows += each("classifier", "concept_present.j.top1", "attack", drawn, False, "j")
        rows += each("asr", "asr.j", "attack", drawn, False, "j")
    whole = {
        ("fid", "fid.j.vs_real", "kept", ""): 14 + left,
        ("fid", "fid.j.vs_original", "kept", ""): 1 - left,
        ("spillover", "efficacy.j", "target", ""): 100 * left,
        ("spillover", "generality.j", "paraphrase", ""): 100 * left,
        ("spillover", "sensitivity.j", "neighbour", ""): 90.0,
        ("spillover", "sensitivity.j", "neighbour", "visual"): 88.0,
        ("spillover", "sensitivity.j", "neighbour", "binomial"): 92.0,
        ("spillover", "hm.j", "all", ""): 100 - 100 * left,
    }
    for (evaluator, metric, group, relation), value in whole.items():
        better = metric.split(".")[0] in ("sensitivity", "hm")
        rows.append(Score(evaluator=evaluator, metric=metric, group=group, relation=relation, value=float(value),
                          low=max(0.0, value - 5), high=value + 5, higher_is_better=better))  # fmt: skip
    return rows


def write_run(root, method, concept="nudity", kind="unsafe", attack="none", model="sd14", version=1, **more):
    """A finished run of every evaluator."""
    folder = root / "runs" / model / concept / method / attack / f"seed{version}"
    names = {"model": model, "concept": concept, "method": method, "recipe": "paper", "attack": attack}
    whole = cell(**names, access="none" if attack == "none" else "text_encoder")
    versions = dict.fromkeys(HEADLINES, version)
    parts = []
    for side, left in (("erased", LEFT.get(method, 0.3)), ("original", 1.0)):
        facts = {"run": str(folder), "cell": whole, "versions": versions, "headlines": HEADLINES, "side": side}
        parts.append(scores_frame(scores_of(left, attack, **more), weights=method * (side == "erased"), **facts))
    folder.mkdir(parents=True)
    write_scores(folder / "scores.parquet", pd.concat(parts))
    cost = {"seconds": 2.0 + len(method), "peak_rss_mb": 900.0, "unet_evaluations": 5}
    record = {
        "key": str(folder), "identity": {"names": {**names, "budget": "paper", "settings": ""}},
        "config": {"seed": version, "concept": {"kind": kind}}, "steps": {"erase": {"cost": cost, "bytes": 10**6}},
    }  # fmt: skip
    (folder / "run.json").write_text(sealed(record))
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three methods and the oracle on a concept of each kind, with an attack on two of them."""
    root = tmp_path_factory.mktemp("results")
    for concept, kind in (("nudity", "unsafe"), ("church", "object"), ("van_gogh", "style")):
        for method in ("uce", "rece", "esd_u"):
            write_run(root, method, concept, kind, "ringabell")
    write_run(root, "oracle", "church", "object")
    return root


def said(capsys, *words):
    code = paper.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


# --- the shipped layouts ---


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_layout_is_printed_in_every_format(name, results):
    layout = read_layout(shipped()[name])
    tables = layout_tables.fill(layout, *layout_tables.wanted_scores(read_runs(results), layout))
    known = {False: pd.DataFrame(columns=COLUMNS), True: read_published()}
    ways = (("markdown", "interval", True), ("latex", "se", True), ("latex", "none", False), ("csv", "none", False))
    for format, spread, published in ways:
        lines = [(t, layout_text.lines(t, spread, layout_published.printed(t, known[published]))) for t in tables]
        out = layout_text.text(lines, spread, format)
        assert "rece" in out and "nan" not in out and "inf]" not in out and "[-inf" not in out
        if format == "latex":
            assert out.count("{") == out.count("}") and (r"\cite{" in out) == (
                published and name not in ("costs", "artists")
            )
    assert {t.layout.name for t in tables} == {name} and all(any(row.cells) for t in tables for row in t.rows)


def test_the_nudity_layout_sums_marks_and_stands_beside_what_papers_printed(results, capsys, tmp_path):
    bib = tmp_path / "cited.bib"
    _, out, _ = said(capsys, "table=nudity", "published=true", f"bib={bib}", "spread=none", f"results={results}")
    rows = {line.split(" | ")[0].strip("| "): line for line in out.splitlines() if line.startswith("|")}
    assert rows["original model"].startswith("| original model | 48 | 48 |")  # two boxes in each of 24 images
    assert rows["uce"].startswith("| uce | <u>24</u> | <u>24</u> |")  # shown to be worse than both others
    assert rows["rece"].startswith("| rece | **0** |") and rows["esd_u"].startswith(
        "| esd_u | **2** |"
    )  # not told apart
    assert "| *UCE (SD1.4) [mace]* | *29* | *62* | *7* |" in out and "*SD1.4 [mace]*" in out
    assert "**UCE" not in out and "not reproduced here" in out
    cited = bib.read_text()
    assert "@misc{mace," in cited and "@misc{p4d," not in cited


def test_latex_colours_and_cites_what_is_published_and_csv_names_the_source(results, capsys):
    words = ["table=nudity", "published=true", f"results={results}"]
    _, out, _ = said(capsys, *words, "format=latex")
    assert r"\textcolor{erasebenchpublished}{UCE (SD1.4)}~\cite{mace}" in out and r"\textbf{" in out
    _, out, _ = said(capsys, *words, "format=csv")
    assert ",measured\n" in out and ",mace\n" in out and "**" not in out and "<u>" not in out


def test_rows_per_concept_and_of_all(tmp_path, capsys):
    for concept in ("church", "tench"):
        for method in ("uce", "rece"):
            write_run(tmp_path, method, concept, "object")
    _, out, _ = said(capsys, "table=objects", f"results={tmp_path}", "spread=none", "published=true")
    blocks = [line.split("|")[1].strip() for line in out.splitlines() if "original model" in line]
    assert blocks == ["church", "tench", "all"]
    assert "| church | *ESD (SD1.4) [unlearndiffatkleaderboard]* | *14* |" in out
    assert "| church | rece | **0** | **0** |" in out and "| church | uce | <u>50</u> |" in out


# --- what rows do not depend on, and what crashes nothing ---


@cache
def fixed():
    """Three methods on one concept, hand-made: the scores, and their tasks."""
    parts = []
    for method in ("uce", "rece", "esd_u"):
        for side, left in (("erased", LEFT[method]), ("original", 1.0)):
            facts = {"run": method, "cell": cell(method=method), "versions": dict.fromkeys(HEADLINES, 1), "side": side}
            parts.append(scores_frame(scores_of(left, "none", 8), headlines=HEADLINES, **facts))
    return pd.concat(parts, ignore_index=True), {"uce": "object", "rece": "object", "esd_u": "object"}


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("mine") / "mine.yaml"
    path.write_text(MINE)
    return path


def printed(layout, scores, tasks, spread="interval", format="markdown"):
    filled = layout_tables.fill(layout, series_of(scores), tasks)
    return layout_text.text([(one, layout_text.lines(one, spread)) for one in filled], spread, format)


SNAPSHOT = """
| method | target ↓ | others ↑ |
| --- | --- | --- |
| original model | 100 [68, 100] | 100 [86, 100] |
| esd_u | **0 [0, 32]** | **75 [55, 88]** |
| rece | **0 [0, 32]** | **75 [55, 88]** |
| uce | **50 [22, 78]** | **88 [69, 96]** |

Mine. Model emoji, object. Concepts: cat. 8 to 24 images a cell. Shares in %. [95 % interval by text, from three
concepts on by concept too]. Bold: best, underlined: second;
methods that are not shown to be worse (paired on the same prompts
and noise, 95 %, Holm over all pairs of the column) share a mark.
"""


def snapshot():
    table, caption = SNAPSHOT.strip().split("\n\n")
    return f"{table}\n\n{' '.join(caption.split())}"


def test_a_fixed_table_is_printed_as_it_was(mine):
    """Wilson's intervals of 0, 4 and 8 of 8 and of 18, 21 and 24 of 24; four of eight texts show nothing (2 / 2^4)."""
    layout, (scores, tasks) = read_layout(mine), fixed()
    assert printed(layout, scores, tasks) == snapshot()


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_order_duplicates_failed_rows_and_other_metrics_change_nothing(mine, seed, twice):
    layout, (scores, tasks) = read_layout(mine), fixed()
    more = scores.assign(run=scores.run + "-again") if twice else scores[:0]
    failed = scores.assign(value=math.nan, status="error", prompt_id=scores.prompt_id + "-failed")
    other = scores.assign(metric="unheard_of", value=math.nan)
    tasks = {**tasks, **{f"{run}-again": task for run, task in tasks.items()}}
    mixed = pd.concat([scores, more, failed, other], ignore_index=True)  # a run again, images that failed, a stranger
    order = list(range(len(mixed)))
    random.Random(seed).shuffle(order)
    assert printed(layout, mixed.iloc[order], tasks) == snapshot()


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_missing_cells_never_crash_and_are_dashes(mine, data):
    layout, (scores, tasks) = read_layout(mine), fixed()
    keep = scores.metric.str.startswith(("concept", "accuracy")) & scores.group.isin(
        ["target", "neighbour", "unrelated"]
    )
    rows = scores[keep].reset_index(drop=True)
    cells = rows[["run", "side", "group"]].drop_duplicates().reset_index(drop=True)
    gone = data.draw(st.sets(st.integers(0, len(cells) - 1), max_size=len(cells) - 1))
    left = rows.merge(cells.drop(index=list(gone)), on=["run", "side", "group"])
    out = printed(layout, left.astype(scores.dtypes.to_dict()), tasks)
    assert "nan" not in out
    if not (left.run.eq("uce") & left.side.eq("erased") & left.group.eq("target")).any():
        assert all(line.startswith("| uce | - |") for line in out.splitlines() if line.startswith("| uce"))


def test_two_versions_of_an_evaluator_are_two_columns(mine, tmp_path, capsys):
    write_run(tmp_path, "uce")
    write_run(tmp_path, "rece", version=2)
    _, out, _ = said(capsys, f"table={mine}", f"results={tmp_path}", "spread=none")
    assert "| target (v1) ↓ | target (v2) ↓ |" in out
    assert "| uce | 50 | - |" in out and "| rece | - | 0 |" in out


# --- marks and spread ---


def marks(rows, higher=True):
    matrix = np.array(rows, float)
    return layout_tables.marks_of(np.nanmean(matrix, 1), compare_all(matrix, [np.arange(matrix.shape[1])]), higher)


def test_the_best_shares_its_mark_with_who_is_not_shown_to_be_worse():
    good, near, bad = [1.0] * 40, [1.0] * 38 + [0.0] * 2, [0.0] * 40
    assert marks([bad, good, near]) == {0: "second", 1: "best", 2: "best"}
    assert marks([bad, good, near], higher=False) == {0: "best", 1: "second", 2: "second"}
    assert marks([good, good]) == {0: "best", 1: "best"}
    assert marks([[1.0], [0.0]]) == {}  # one image shows nothing


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=12, max_size=12), min_size=2, max_size=5), st.booleans())
def test_no_second_where_none_is_shown_to_be_worse_and_none_below_is_marked(rows, higher):
    found = marks(rows, higher)
    means = [sum(row) / 12 * (1 if higher else -1) for row in rows]
    best = [i for i, mark in found.items() if mark == "best"]
    assert best and means.index(max(means)) in found
    assert all(means[i] < max(means[j] for j in best) for i, mark in found.items() if mark == "second")


def test_the_standard_error_is_the_interval_s_and_references_are_never_marked(results, capsys):
    _, out, _ = said(capsys, "table=objects", "spread=se", f"results={results}")
    half = (1 - 24 / (24 + 1.96**2)) / 2  # Wilson's upper end at 0 of 24 is z^2 / (n + z^2)
    assert f"**0 ± {100 * half / 1.96:.0f}**" in out
    lines = [line for line in out.splitlines() if "original model" in line or "oracle" in line]
    assert len(lines) == 2 and not any("**" in line or "<u>" in line for line in lines)
    assert out.index("original model") < out.index("never knew") < out.index("| esd_u") < out.index("| rece")


# --- a user's own layout, and what is wrong with it ---


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.replace("title", "titel"), "titel - must be one of title, columns"),
        (lambda t: t.replace("label: target", "lable: target"), r"columns\[0\]: lable - must be one of"),
        (lambda t: t.replace("group: target", "group: targte"), r"columns\[0\].group must hold .*mean target"),
        (lambda t: t.replace("decimals: 0", "decimals: many"), r"columns\[0\].decimals must be an integer"),
        (lambda t: t + "rows: [method, concept]\n", "rows must be method or"),
        (lambda t: t + "where: {colour: red}\n", "where must be a mapping of some of model, task"),
        (lambda t: t + "spread: wide\n", "spread must be one of interval, se, none"),
        (lambda t: t + "marks: maybe\n", "marks must be true or false"),
        (lambda t: t + "title: Twice.\n", "'title' stands there twice"),
        (lambda t: t + "  - {label: x}\n", r"columns\[2\]: metric - must be given"),
        (lambda t: t.replace("decimals: 0", "published: {metrics: x}"), "published must be a mapping with metric"),
        (lambda t: "columns: {}\ntitle: x\n", "columns must be a list of at least one"),
        (lambda t: "- 1\n", "must be a mapping of title"),
        (lambda t: "[" * 5000, "must be a yaml"),
        (lambda t: "title: [\n", "must be a yaml"),
        (lambda t: "#" * 2**19, "must be at most"),
    ],
)  # fmt: skip
def test_a_wrong_yaml_is_one_line_that_names_the_file(change, told, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(change(MINE))
    with pytest.raises(ValueError, match=told) as caught:
        read_layout(path)
    assert "wrong.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["table=nudty"], "table must be one of methods, cost"),
        (["table=gone.yaml"], "found no gone.yaml"),
        (["table=nudity", "bib=x.bib"], "bib - must come with published=true"),
        (["table=nudity", "spread=wide"], "spread must be one of"),
        (["table=methods", "published=true"], "published - must come with a layout"),
        (
            ["table=nudity", "concept=church"],
            "no run fits task=unsafe; run: python -m erasebench experiment=rece_nudity_sd14",
        ),
    ],
)
def test_a_wrong_command_is_one_line(words, told, results, capsys):
    code, out, err = said(capsys, *words, f"results={results}")
    assert code == 2 and out == "" and told in err and err.count("\n") == 1


def test_help_lists_every_layout(capsys):
    _, out, _ = said(capsys, "--help")
    assert all(f"    {name}" in out for name in shipped())


def test_published_lines_are_facts_of_the_file_in_this_table_s_unit(results):
    layout = read_layout(shipped()["coco"])
    found = [run for run in read_runs(results) if run.names["concept"] == "nudity"]
    (table,) = layout_tables.fill(layout, *layout_tables.wanted_scores(found, layout))
    lines = {(one.label, one.key): one.cells for one in layout_published.printed(table, read_published())}
    assert lines["UCE (SD1.4)", "unlearndiffatk"] == ("17.1", *"-----", "30.9 †", "-")  # printed as a cosine of 0.309
    assert {label.split(" (")[0] for label, _ in lines} == {"SD1.4", "UCE", "RECE", "ESD-u"}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex (Debian: texlive-latex-recommended)")
def test_a_real_tex_compiles_every_layout(results, tmp_path, capsys):
    body = []
    for name in shipped():
        words = [f"table={name}", "format=latex", "published=true", f"out={tmp_path / name}.tex", f"results={results}"]
        assert said(capsys, *words)[0] == 0
        body.append(rf"\input{{{name}.tex}}\clearpage")
    packages = r"\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx,textcomp,xcolor}"
    text = rf"\documentclass{{article}}{packages}\begin{{document}}{''.join(body)}\end{{document}}"
    (tmp_path / "all.tex").write_text(text)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, text=True, check=False, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
