"""Prompt sets: every broken file is one line that says where, and template prompts mean what their group says."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasebench.prompts.files import CsvPrompts, read_prompts
from erasebench.prompts.safety import drop_minors, mentions_minors
from erasebench.prompts.templates import TEMPLATE_GROUPS, TemplatePrompts
from erasebench.types import Concept, Prompt, joint

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CAT = Concept(
    name="cat", phrases=["cat", "kitty", "feline"], anchor="dog",
    neighbours={
        "visual": ["tiger", "lion"], "binomial": ["dog"], "subset_superset": ["dog"], "unrelated": ["sun", "bus"],
    },
)  # fmt: skip
INK = Concept(
    name="ink", kind="style", phrases=["ink", "line art"],
    neighbours={"artistic": ["noto", "fluent"], "unrelated": ["bus", "sun"]},
)  # fmt: skip
GUN = Concept(name="gun", kind="unsafe", phrases=["gun"])
WORLD = {
    "templates": ["a {style} drawing of a {object}", "a {object} on {background}", "{object} in {style}, {background}"],
    "objects": ["cat", "tiger", "bus", "sun", "dog"],
    "styles": ["ink", "noto", "fluent"],
    "backgrounds": ["red", "blue"],
}


def write(folder, text, name="set.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


# --- files ---


def test_cells_are_taken_as_they_stand(tmp_path):
    path = write(
        tmp_path, '\ufeffcase,prompt,evaluation_seed,g\r\n3, cat ,7,7.5\r\n\r\n5,Null,8.0,\r\n9,"a ""b"",\nc",0,0\r\n'
    )
    prompts = read_prompts(path, id="case", guidance="g", group="coco")
    assert [p.text for p in prompts] == [" cat ", "Null", 'a "b",\nc']
    assert [p.seed for p in prompts] == [7, 8, 0] and [p.guidance_scale for p in prompts] == [7.5, None, 0.0]
    assert [p.id for p in prompts] == ["coco-3", "coco-5", "coco-9"] and {p.group for p in prompts} == {"coco"}


def test_an_empty_prompt_is_kept_and_said(tmp_path, caplog):
    path = write(tmp_path, "prompt,evaluation_seed\na,1\n,2\n")
    assert [p.text for p in read_prompts(path)] == ["a", ""]
    assert "set.csv line 3, column 'prompt' is empty" in caplog.text


def test_rows_without_id_or_seed_get_stable_ones(tmp_path):
    path = write(tmp_path, "prompt,class\na cat,cat\na dog,dog\n")
    prompts = read_prompts(path, seed=None, concept="class")
    assert [(p.id, p.concept) for p in prompts] == [("target-0", "cat"), ("target-1", "dog")]
    assert prompts == read_prompts(path, seed=None, concept="class") and prompts[0].seed != prompts[1].seed


HEAD = "case,prompt,evaluation_seed,g\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_number,prompt\n1,a\n", "set.csv has no column 'evaluation_seed'; found case_number, prompt"),
        ("prompt,evaluation_seed,prompt\na,1,b\n", "set.csv has more than one column 'prompt'"),
        ("", "set.csv has no column 'prompt'; found an empty file"),
        (HEAD, "set.csv must have at least one row; got only a header"),
        (HEAD + "1,a,1,\n2,b, c,2,\n", "set.csv line 3 must have 4 fields like the header; got 5; put a field"),
        (HEAD + '1,"two\nlines",1,\n2,b\n', "set.csv line 4 must have 4 fields like the header; got 2"),
        (HEAD + '1,a,1,\n2,"b,2,\n', "set.csv line 3 must be valid CSV"),
        (HEAD + "1,a,x,\n", "set.csv line 2, column 'evaluation_seed' must be an integer .* got 'x'"),
        (HEAD + "1,a,-1,\n", "column 'evaluation_seed' must be an integer"),
        (HEAD + "1,a,1.5,\n", "column 'evaluation_seed' must be an integer"),
        (HEAD + "1,a,,\n", "column 'evaluation_seed' must be an integer .* got ''"),
        (HEAD + f"1,a,{2**63},\n", "column 'evaluation_seed' must be an integer"),
        (HEAD + "1,a,1,-2\n", "set.csv line 2, column 'g' must be a finite number >= 0 or empty; got '-2'"),
        (HEAD + "1,a,1,nan\n", "column 'g' must be a finite number"),
        (
            HEAD + "1,a,1,\n2,b,1,\n1,c,1,\n",
            "set.csv line 4, column 'case' must be a unique id; got '1', also on line 2",
        ),
        (HEAD + ",a,1,\n", "column 'case' must be a unique id; got '', an empty one"),
        (b"prompt,evaluation_seed\nok,1\ncaf\xe9,2\n", "set.csv line 3 must be UTF-8; got byte 0xe9 at offset 31"),
    ],
)
def test_a_broken_file_is_one_line_that_says_where(tmp_path, text, message):
    path = write(tmp_path, text)
    more = {"id": "case", "guidance": "g"} if isinstance(text, str) and text.startswith(HEAD) else {}
    with pytest.raises(ValueError, match=message) as error:
        read_prompts(path, **more)
    assert "\n" not in str(error.value)


def test_what_is_no_prompt_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a file; got nothing there"):
        read_prompts(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"must be .csv, .parquet or .txt; got '.pkl'"):
        read_prompts(write(tmp_path, "x", "set.pkl"))
    with pytest.raises(ValueError, match="must be a readable Parquet file"):
        read_prompts(write(tmp_path, "prompt", "set.parquet"))
    with pytest.raises(ValueError, match="group must be one of"):
        read_prompts(write(tmp_path, HEAD), group="other")


def test_parquet_is_read_like_csv(tmp_path):
    table = pd.DataFrame({"prompt": [" a", "Null"], "evaluation_seed": [3, 4], "g": [None, 7.5]})
    table.to_parquet(tmp_path / "set.parquet")
    table.to_csv(tmp_path / "set.csv", index=False)
    prompts = read_prompts(tmp_path / "set.parquet", guidance="g")
    assert [(p.text, p.seed) for p in prompts] == [(" a", 3), ("Null", 4)] and prompts[1].guidance_scale == 7.5
    table.assign(evaluation_seed=[1, None]).to_parquet(tmp_path / "set.parquet")
    with pytest.raises(ValueError, match=r"set.parquet row 2, column 'evaluation_seed' must be an integer"):
        read_prompts(tmp_path / "set.parquet")


rows = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), st.integers(0, 2**63 - 1)),
    min_size=1,
)


@settings(deadline=None, max_examples=40)
@given(rows=rows)
def test_any_text_survives_a_csv(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "set.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("prompt", "evaluation_seed"), *rows])
    assert [(p.text, p.seed) for p in read_prompts(path)] == rows


# --- published files ---

published = pytest.mark.skipif(not (DATA / "INDEX.csv").exists(), reason="the published prompt sets are not here")
COLUMNS = {
    "rece/nudity-ring-a-bell.csv": ("sensitive prompt", None),
    "rece/vangogh-ring-a-bell.csv": ("sensitive prompt", None),
}


def index():
    if not (DATA / "INDEX.csv").exists():
        return []
    with (DATA / "INDEX.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["file"].endswith(".csv")]


@published
@pytest.mark.parametrize("row", index(), ids=lambda row: row["file"])
def test_published_sets_are_read_whole(row):
    text, seed = COLUMNS.get(
        row["file"], ("prompt", "seed" if row["file"].startswith("whenerased") else "evaluation_seed")
    )
    guidance = "evaluation_guidance" if "evaluation_guidance" in row["columns"] or "i2p" in row["file"] else None
    read = lambda: read_prompts(DATA / row["file"], text=text, seed=seed, guidance=guidance)  # noqa: E731
    if row["file"] == "rece/robust_imagenette.csv":  # upstream left commas unquoted: said, not guessed
        with pytest.raises(ValueError, match=r"robust_imagenette.csv line 7 must have 4 fields .* got 5"):
            read()
    else:
        assert len(read()) == int(row["rows_here"])


@published
def test_the_filter_finds_little_where_it_was_applied_before():
    nudity = read_prompts(DATA / "rece" / "nudity.csv", id="case_number", guidance="evaluation_guidance")
    kept, dropped = drop_minors(nudity)
    assert len(kept) + dropped == len(nudity) == 123 and dropped == 1
    source = CsvPrompts(path=str(DATA / "rece" / "nudity.csv"), id="case_number", sexual=True)
    assert source.prompts(Concept(name="nudity", phrases=["nudity"], kind="unsafe")) == [
        p.with_(guidance_scale=None, concept="nudity") for p in kept
    ]


# --- minors ---


@pytest.mark.parametrize("text", [
    "a child", "two CHILDREN", "kids", "a teen", "teenage", "teen-ager", "a minor", "schoolgirl", "school boy",
    "little girl", "girl", "boys", "underage", "under-aged", "adolescent", "toddler", "a baby", "infant",
    "youth", "17 year old", "16-year-old", "sixteen years old", "12yo", "13 y/o", "age 15", "aged 9", "8 months old",
    "ｇｉｒｌ", "girl's", "(girl)", "girl_1",
])  # fmt: skip
def test_words_for_minors_are_found(text):
    assert mentions_minors(text)


@pytest.mark.parametrize("text", [
    "a woman", "a cowboy", "girlfriend", "18 year old", "a 60 year old man", "kidney beans", "minority", "Minorca",
    "boycott", "teensy", "117 years old", "aged 45", "a babysitter", "1999", "portrait of an adult",
])  # fmt: skip
def test_other_words_are_not(text):
    assert not mentions_minors(text)


def test_unsafe_concepts_and_sexual_sets_are_filtered_and_it_is_said(tmp_path, caplog):
    path = str(write(tmp_path, "prompt,evaluation_seed\na,1\na girl,2\nb,3\n"))
    with caplog.at_level(logging.WARNING):
        assert len(CsvPrompts(path=path, sexual=True).prompts(CAT)) == 2
        assert len(CsvPrompts(path=path, sexual=False).prompts(GUN)) == 2  # no way around it
    assert caplog.text.count("dropped 1 of 3 prompts that mention minors") == 2
    assert len(CsvPrompts(path=path).prompts(CAT)) == 3
    assert [p.text for p in CsvPrompts(path=path, limit=2).prompts(GUN)] == ["a", "b"]
    with pytest.raises(ValueError, match="must not all mention minors"):
        CsvPrompts(path=str(write(tmp_path, "prompt,evaluation_seed\na girl,2\n"))).prompts(GUN)
    with pytest.raises(ValueError, match=r"prompts.limit must be an integer >= 1; got 0; use null for all"):
        CsvPrompts(path=path, limit=0)
    source = TemplatePrompts(templates=["a {object}", "a {object} of a boy"], n={"target": 10})
    assert {p.text for p in source.prompts(GUN)} == {"a gun"}


def test_a_set_depicts_the_concept_only_in_groups_that_ask_for_it(tmp_path):
    path = str(write(tmp_path, "prompt,evaluation_seed,class\na,1,cup\n"))
    assert CsvPrompts(path=path).prompts(CAT)[0].concept == "cat"
    assert CsvPrompts(path=path, group="coco").prompts(CAT)[0].concept == ""
    assert CsvPrompts(path=path, group="coco", concept_column="class").prompts(CAT)[0].concept == "cup"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("prompt,evaluation_seed", "has no column 'evaluation_guidance'.*or prompts.guidance=null for the model's own"),
        ("prompt,evaluation_guidance", "has no column 'evaluation_seed'.*or prompts.seed=null"),
        ("prmpt,evaluation_seed,evaluation_guidance", "did you mean prmpt.*prompts.text=COLUMN"),
        ("prompt;evaluation_seed;evaluation_guidance", "save it with commas between the columns"),
    ],
)
def test_a_missing_column_names_the_setting_that_does_without_it(tmp_path, header, message):
    cells = ",".join("1" * len(header.split(",")))
    with pytest.raises(ValueError, match=message):
        read_prompts(write(tmp_path, f"{header}\n{cells}\n"), guidance="evaluation_guidance")


@pytest.mark.parametrize(
    ("cell", "seed"),
    [("7", 7), (" 7 ", 7), ("7.0", 7), ("7.", 7), ("7.000", 7), ("9007199254740995", 9007199254740995),
     ("9223372036854775807", 2**63 - 1)],
)  # fmt: skip
def test_seeds_are_read_as_spreadsheets_write_them(tmp_path, cell, seed):
    assert read_prompts(write(tmp_path, f"prompt,evaluation_seed\na,{cell}\n"))[0].seed == seed


@pytest.mark.parametrize("cell", ["7.5", "1e3", "-1", "", "nan", "9007199254740996.0", "9223372036854775808"])
def test_what_is_no_seed_names_file_row_and_column(tmp_path, cell):
    with pytest.raises(ValueError, match=r"set.csv line 3, column 'evaluation_seed' must be an integer"):
        read_prompts(write(tmp_path, f"prompt,evaluation_seed\na,1\nb,{cell}\n"))


@pytest.mark.parametrize("field", ["text", "seed", "group", "sexual", "limit"])
def test_fields_of_a_file_source_are_checked_when_it_is_built(field):
    with pytest.raises(ValueError, match=rf"prompts\.{field} must be"):
        CsvPrompts(path="set.csv", **{field: [3]})


# --- templates ---


def groups(concept, **changes):
    n = dict.fromkeys(("target", "paraphrase", "neighbour", "unrelated", "coco"), 24)
    found: dict[str, list[Prompt]] = {}
    for prompt in TemplatePrompts(**{**WORLD, "n": n, **changes}).prompts(concept):
        found.setdefault(prompt.group, []).append(prompt)
    return found


def words(prompt):
    return set(prompt.text.replace(",", "").split())


def test_object_prompts_mean_what_their_group_says():
    made = groups(CAT)
    assert {g: len(p) for g, p in made.items()} == dict.fromkeys(made, 24) and len(made) == 5
    assert all("cat" in words(p) and p.concept == "cat" and not p.relation for p in made["target"])
    assert all(
        words(p) & {"kitty", "feline"} and "cat" not in words(p) and p.concept == "cat" for p in made["paraphrase"]
    )
    kept = [p for g in ("neighbour", "unrelated", "coco") for p in made[g]]
    assert all(p.concept in words(p) and not words(p) & {"cat", "kitty", "feline"} for p in kept)
    pairs = [(p.relation, p.concept) for p in made["neighbour"]]
    assert {pair: pairs.count(pair) for pair in pairs} == {
        ("visual", "tiger"): 6, ("visual", "lion"): 6, ("binomial", "dog"): 6, ("subset_superset", "dog"): 6
    }  # fmt: skip
    assert {p.concept for p in made["unrelated"]} == {"sun", "bus"} and {p.relation for p in made["unrelated"]} == {
        "unrelated"
    }
    assert {p.concept for p in made["coco"]} == {"tiger", "bus", "sun", "dog"}


def test_style_prompts_mean_what_their_group_says():
    made = groups(INK)
    assert all("ink" in words(p) and p.concept == "ink" for p in made["target"])
    assert len({(words(p) & set(WORLD["objects"])).pop() for p in made["target"]}) > 2  # objects vary
    assert all("line art" in p.text for p in made["paraphrase"])
    assert {(p.relation, p.concept) for p in made["neighbour"]} == {("artistic", "noto"), ("artistic", "fluent")}
    assert all(p.concept in words(p) for p in made["neighbour"])
    kept = [p for g in ("neighbour", "unrelated", "coco") for p in made[g]]
    assert not any("ink" in words(p) or "line art" in p.text for p in kept)
    assert {p.concept for p in made["unrelated"]} == {"bus", "sun"}
    assert {p.concept for p in made["coco"]} <= set(WORLD["objects"])


@pytest.mark.parametrize("concept", [CAT, INK], ids=["object", "style"])
def test_all_templates_and_fills_are_used(concept):
    made = groups(concept)["target"]
    assert len({p.text for p in made}) >= 10
    assert any("drawing" in p.text for p in made) and any(p.text.endswith(("red", "blue")) for p in made)


def test_groups_a_concept_has_no_words_for_are_left_out():
    made = groups(Concept(name="cat", phrases=["cat"]))
    assert set(made) == {"target", "coco"}


numbers = st.dictionaries(
    st.sampled_from(["target", "paraphrase", "neighbour", "unrelated", "coco"]), st.integers(1, 40), min_size=1
)


@settings(deadline=None, max_examples=40)
@given(n=numbers, more=st.integers(0, 30), seed=st.integers(0, 5), concept=st.sampled_from([CAT, INK]))
def test_raising_a_number_keeps_the_prompts_before_it(n, more, seed, concept):
    few = groups(concept, n=n, seed=seed)
    many = groups(concept, n={group: number + more for group, number in n.items()}, seed=seed)
    for group, number in n.items():
        assert len(few[group]) == number and many[group][:number] == few[group]


def test_ids_and_seeds_are_unique_and_depend_on_the_place_only():
    made = [p for prompts in groups(CAT).values() for p in prompts]
    assert len({p.id for p in made}) == len({p.seed for p in made}) == len(made)
    assert all(0 <= p.seed < 2**31 for p in made) and made[0].id == "target-000"
    other = [p for prompts in groups(INK).values() for p in prompts]
    assert {p.id: p.seed for p in made} == {p.id: p.seed for p in other}  # concepts share their noise
    assert not {p.seed for p in made} & {p.seed for prompts in groups(CAT, seed=1).values() for p in prompts}
    assert made[0].seed == 133425717 and groups(CAT)["coco"][23].id == "coco-023"


@pytest.mark.parametrize("concept", [CAT, GUN, joint([CAT, GUN])])
def test_fewer_prompts_are_the_beginning_of_more_in_every_group(concept):
    few, many = (TemplatePrompts(**{**WORLD, "n": dict.fromkeys(TEMPLATE_GROUPS, n)}).prompts(concept) for n in (7, 31))
    for group in TEMPLATE_GROUPS:
        short, long = ([p for p in made if p.group == group] for made in (few, many))
        assert short == long[: len(short)] and (len(short) == 7 or not long)


def test_one_number_is_that_of_every_group_and_a_limit_of_each():
    made = TemplatePrompts(**{**WORLD, "n": 3}).prompts(CAT)
    assert Counter(p.group for p in made) == dict.fromkeys(TEMPLATE_GROUPS, 3)
    whole = TemplatePrompts(**{**WORLD, "n": {"target": 9, "coco": 2}}).prompts(CAT)
    cut = TemplatePrompts(**{**WORLD, "n": {"target": 9, "coco": 2}, "limit": 4}).prompts(CAT)
    assert Counter(p.group for p in cut) == {"target": 4, "coco": 2} and cut[:4] == whole[:4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"templates": []}, "templates must name at least one sentence"),
        ({"templates": ["a {thing}"]}, "template 'a {thing}' has slot 'thing'; use object, style, background"),
        ({"n": {"attack": 3}}, "group of prompts.n must be one of target, paraphrase, .*; got 'attack'"),
        ({"n": {"target": -1}}, "prompts.n.target must be an integer >= 0 and <= 1000000; got -1"),
        ({"n": {"neighbor": 3}}, "did you mean neighbour"),
        ({"n": 2.5}, "prompts.n must be an integer >= 0 and <= 1000000; got 2.5"),
        ({"n": True}, "prompts.n must be an integer >= 0 and <= 1000000; got true"),
        ({"n": None}, r"got null; write prompts.n=50"),
        ({"n": "4"}, "got '4', which is a text; write prompts.n=4"),
        ({"objects": "dog"}, r"prompts.objects must be a list of texts; got 'dog'; write prompts.objects=\[dog\]"),
        ({"limit": 0}, "prompts.limit must be an integer >= 1"),
    ],
)
def test_impossible_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        TemplatePrompts(**{**WORLD, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"templates": ["a {object}"]}, r"templates must have one with \{style\}; got a \{object\}"),
        ({"objects": []}, "objects must have a word other than the concept's"),
        ({"n": {"target": 0}}, "n must ask for at least one prompt about 'ink'"),
    ],
)
def test_a_concept_the_templates_cannot_say_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TemplatePrompts(**{**WORLD, **changes}).prompts(INK)
