"""Published numbers are facts with a source; where papers disagree is derived from them alone."""

import pandas as pd
import pytest

from erasebench import paper
from erasebench.report.published import COLUMNS, SCALES, disagreement, published_folder, read_published


def rows(**changes):
    plain = dict.fromkeys(COLUMNS, "x") | {"metric": "ASR", "unit": "%", "doubt": "", "ours": ""}
    return [plain | {"paper": p, "value": v, "dataset": d} for p, v, d in (("A", 1.0, "i2p"), ("B", 60.0, "142"))]


def test_the_shipped_file_is_read_whole_and_names_every_source():
    table = read_published()
    assert len(table) == 1034 and tuple(table.columns) == COLUMNS
    assert table.value.notna().all() and not table.source.str.contains("UNCERTAIN|corpus").any()
    assert set(table.ours) - {""} <= {
        "none", "uce", "rece", "esd_x", "esd_u", "sld_max", "sld_strong", "sld_medium", "sld_weak", "negative_prompt",
    }  # fmt: skip
    assert not table.unit.str.contains("UNCERTAIN|table").any() and set(SCALES) <= {*table.unit}
    cited = (published_folder() / "published.bib").read_text()
    assert all(f"@misc{{{key}," in cited for key in set(table.key))


def test_a_disagreement_names_both_ends_and_what_differs():
    (heads, line) = disagreement(pd.DataFrame(rows()))
    said = dict(zip(heads, line, strict=True))
    assert (said["lowest"], said["highest"], said["apart"]) == ("1.00 (A)", "60.00 (B)", "59.00")
    assert said["settings that differ"] == "dataset" and said["papers"] == "2"


def test_fractions_and_percentages_are_compared_on_one_scale_and_doubt_is_marked():
    both = rows()
    both[1] |= {"value": 0.01, "unit": "frac", "dataset": "i2p"}
    assert len(disagreement(pd.DataFrame(both))) == 1  # 1 % and .01 agree
    both[1] |= {"value": 0.5, "doubt": "order of rows uncertain"}
    (_, line) = disagreement(pd.DataFrame(both))
    assert line[6] == "49.00 †" and line[-1] == "none recorded"


def test_one_paper_disagrees_with_nobody_and_order_changes_nothing():
    table = read_published()
    assert disagreement(table[table.paper == "MACE"])[1:] == []
    assert disagreement(table.sample(frac=1, random_state=0)) == disagreement(table)


def test_the_command_needs_no_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paper.main(["table=disagreement"]) == 0
    said = capsys.readouterr().out
    assert "| RECE | nudity | UnlearnDiffAtk | unsafe rate | 0.72 (Concept Steerers) | 75.42" in said
    assert paper.main(["table=disagreement", "format=csv", "out=d.csv"]) == 0
    assert len(pd.read_csv("d.csv")) == said.count("\n") - 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.rename(columns={"unit": "units"}), "must have the columns"),
        (lambda t: t.assign(source=""), "line 2: source must be given"),
        (lambda t: t.assign(value="inf"), "line 2: value must be a number"),
        (lambda t: t.assign(value="a lot"), "line 2: value must be a number"),
    ],
)
def test_a_wrong_file_is_one_line(change, said, tmp_path):
    change(pd.DataFrame(rows())).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(ValueError, match=said) as caught:
        read_published(tmp_path / "p.csv")
    assert "\n" not in str(caught.value)


def test_every_paper_whose_title_is_known_has_authors_and_a_year():
    entries = (published_folder() / "published.bib").read_text(encoding="utf-8").split("\n@misc{")[1:]
    bare = {entry.split(",", 1)[0] for entry in entries if "title = {{" not in entry}
    assert bare == {"baseline", "forceforget", "gaussiancore", "leaderboard", "recare", "unlearndiffatkleaderboard"}
    assert all("author = {" in entry and "year = {20" in entry for entry in entries if "title = {{" in entry)
