"""Published prompt sets: every yaml against the file it pins, every refusal in one line, nothing guessed."""

from __future__ import annotations

import csv
import hashlib
import logging
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from attacks.prompt_set import PromptSet
from erasebench.prompts.files import read_prompts
from erasebench.prompts.published import PublishedPrompts, audit
from erasebench.store import sources
from erasebench.types import Concept, Prompt

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
published = pytest.mark.skipif(not (DATA / "INDEX.csv").exists(), reason="the published prompt sets are not here")

CAT = Concept(name="cat", phrases=("cat", "kitty"))
NUDITY = Concept(name="nudity", kind="unsafe", phrases=("nudity",))


def yamls() -> dict[str, dict]:
    """Set name -> its yaml, all groups that hold published files."""
    found = {}
    for folder, target in (("attack", "attacks.prompt_set.PromptSet"), ("prompts", "erasebench.prompts.published")):
        for path in sorted((ROOT / "conf" / folder).glob("*.yaml")):
            node = OmegaConf.to_container(OmegaConf.load(path))
            if str(node.get("_target_", "")).startswith(target) and node.get("path", "???") != "???":
                found[path.stem] = node | {"path": node["path"].replace("${data}", "data")}
    return found


SETS = yamls()


def index() -> dict[str, dict[str, str]]:
    if not (DATA / "INDEX.csv").exists():
        return {}
    with (DATA / "INDEX.csv").open(encoding="utf-8", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def make(path, content="prompt,evaluation_seed\na cat,1\n", **fields) -> PromptSet:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return PromptSet(**({"name": "mine", "path": str(path), "source": "the moon"} | fields))


def attack(source: PromptSet, pipe, concept=CAT) -> list[Prompt]:
    return source.attack(pipe, pipe, [Prompt(id="target-0", text="unused")], concept, None)


# --- the yamls ---


@pytest.mark.parametrize("name", SETS)
def test_every_yaml_says_what_it_is_and_how_to_get_it(name):
    node = SETS[name]
    assert node["name"] == name and node["rows"] > 0 and node["licence"] and node["source"]
    assert node["path"].startswith("data/")
    assert node.get("revision") or node.get("page")  # pinned, or behind a page that is named
    if node.get("concepts"):
        assert all((ROOT / "conf" / "concept" / f"{c}.yaml").exists() for c in node["concepts"])
    made = instantiate(node, _convert_="all")
    with pytest.raises(FileNotFoundError) as error:
        PublishedPrompts.read(PromptSet(**{k: v for k, v in node.items() if k != "_target_"} | {"path": "nowhere.csv"}))
    for part in filter(None, (node["source"], node["licence"], node.get("revision"), node.get("page"))):
        assert part in str(error.value)
    assert f"{made.node}.path=FILE" in made.how_to_obtain() and "\n" not in str(error.value)


@pytest.mark.parametrize("name", SETS)
def test_every_hash_is_whole_unless_the_yaml_says_why_not(name):
    text = next(p for g in ("attack", "prompts") if (p := ROOT / "conf" / g / f"{name}.yaml").exists()).read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("sha256:")]
    pinned = SETS[name]["sha256"]
    if pinned is None:
        assert "not pinned: this project has not had the file" in line
    elif len(pinned) < 64:
        assert len(pinned) == 16 and "its first 16 digits" in line
        assert f"`{name}`" in (ROOT / "docs" / "prompt_sets.md").read_text().split("What is checked")[1]


def test_sets_about_sexual_content_are_marked():
    assert all(SETS[name]["sexual"] for name, node in SETS.items() if node.get("concepts") == ["nudity"])
    assert all(SETS[name]["sexual"] for name in ("i2p", "mma1000", "violence756"))


@published
@pytest.mark.parametrize("file", [f for f in index() if f.endswith(".csv")])
def test_every_published_file_has_a_yaml_and_the_index_counts(file):
    (node,) = [node for node in SETS.values() if node["path"] == f"data/{file}"]
    row = index()[file]
    assert node["rows"] == int(row["rows_upstream"]) and node["sha256"].startswith(row["upstream_sha256_16"])
    whole = row["rows_here"] == row["rows_upstream"]  # else rows were removed, so it is another file than published
    fields = {k: v for k, v in node.items() if k != "_target_"} | {"path": str(DATA / file), "group": "attack"}
    if not whole:
        with pytest.raises(ValueError, match=r"must have sha256 .* or attack.sha256=null to use this file"):
            PromptSet(**fields).read()
        fields["sha256"] = None
    elif file.endswith("robust_imagenette.csv"):
        with pytest.raises(ValueError, match=r"robust_imagenette.csv line 7 must have 4 fields .* got 5; put a field"):
            PromptSet(**fields).read()
        return
    read = PromptSet(**fields).read()
    assert len(read) == int(row["rows_here"])
    with (DATA / file).open(encoding="utf-8-sig", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [p.text for p in read] == [r[node.get("text", "prompt")] for r in rows]  # "Null" and spaces as they stand
    if node.get("seed", "evaluation_seed"):
        assert [p.seed for p in read] == [int(float(r[node.get("seed", "evaluation_seed")])) for r in rows]
    if node.get("guidance"):
        assert [p.guidance_scale for p in read] == [float(r[node["guidance"]]) for r in rows]


@pytest.mark.slow
@published
@pytest.mark.parametrize("name", ["nudity142", "i2p", "ringabell_contrast"])
def test_what_is_left_of_a_sexual_set_and_what_was_dropped_add_up(name, tiny_pipe):
    node = SETS[name]
    file = node["path"].removeprefix("data/")
    fields = {k: v for k, v in node.items() if k != "_target_"} | {"path": str(DATA / file), "sha256": None}
    found = attack(PromptSet(**fields), tiny_pipe, NUDITY)
    info = found[0].info
    assert len(found) + info["dropped_minors"] == info["rows"] == int(index()[file]["rows_here"])
    assert {p.concept for p in found} == {"nudity"} and len({p.id for p in found}) == len(found)


@published
def test_the_rows_of_the_run_s_concept_are_taken():
    def about(name, concept):
        node = SETS[name]
        fields = {k: v for k, v in node.items() if k != "_target_"}
        path = str(DATA / node["path"].removeprefix("data/"))
        return PromptSet(**fields | {"path": path}).prompts(concept)

    truck = Concept(name="garbage_truck", phrases=("garbage truck", "refuse lorry"))
    spaniel = Concept(name="english_springer", phrases=("English springer",))
    assert len(about("imagenette", truck)) == len(about("imagenette", spaniel)) == 500
    assert len(about("validation_imagenet", spaniel)) == 10  # written in another case there
    artist = Concept(name="van_gogh", kind="style", phrases=("Van Gogh", "Vincent van Gogh"))
    assert len(about("big_artists", artist)) == 20


# --- reading ---


def test_a_set_brings_its_own_seeds_and_guidance_and_the_run_s_concept(tmp_path, tiny_pipe):
    text = 'prompt,evaluation_seed,g\n"a, cat",7,5\nNull,8,\n'
    found = attack(make(tmp_path / "set.csv", text, guidance="g"), tiny_pipe)
    assert [(p.text, p.seed, p.guidance_scale) for p in found] == [("a, cat", 7, 5.0), ("Null", 8, None)]
    assert {(p.group, p.concept, p.source_id) for p in found} == {("attack", "cat", "")}
    assert (PromptSet.access, PromptSet.strength) == ("none", "text")


def test_odd_rows_are_kept_counted_and_said(tmp_path, tiny_pipe, caplog):
    rows = ["a cat,1", "a cat,1", "a cat,2", " a cat,3", ",4", "x" * 80 + ",5"]
    source = make(tmp_path / "set.csv", "\n".join(["prompt,evaluation_seed", *rows]) + "\n")
    with caplog.at_level(logging.WARNING):
        found = attack(source, tiny_pipe)
    assert len(found) == 6
    counts = {"rows": 6, "dropped_minors": 0, "repeated": 1, "empty": 1, "outer_spaces": 1}
    assert all({k: p.info[k] for k in counts} == counts for p in found)
    assert [p.info["truncated"] for p in found] == [False] * 5 + [True]  # 80 tokens, 75 fit
    assert "1 repeated, 1 empty, 1 outer_spaces" in caplog.text
    assert audit([]) == {"repeated": 0, "empty": 0, "outer_spaces": 0}


def test_exactly_as_many_tokens_as_fit_are_not_truncated(tmp_path, tiny_pipe):
    source = make(tmp_path / "set.csv", f"prompt,evaluation_seed\n{'x' * 75},1\n{'x' * 76},1\n")
    assert [p.info["truncated"] for p in attack(source, tiny_pipe)] == [False, True]
    kept = tiny_pipe.tokenizer(["x" * 76, "x" * 77], truncation=True, max_length=77)["input_ids"]
    assert kept[0] == kept[1]  # their ends differ, which the model never sees


def test_minors_are_dropped_and_no_setting_keeps_them(tmp_path, caplog):
    path = tmp_path / "set.csv"
    text = "prompt,evaluation_seed\na woman,1\na schoolgirl,2\n"
    for fields, concept in (({"sexual": True}, CAT), ({"sexual": False}, NUDITY)):
        with caplog.at_level(logging.WARNING):
            found, counts = make(path, text, **fields).select(concept)
        assert [p.text for p in found] == ["a woman"] and counts["dropped_minors"] == 1
        assert "dropped 1 of 2 prompts that mention minors" in caplog.text
    assert len(make(path, text).prompts(CAT)) == 2  # a set about cats
    with pytest.raises(ValueError, match="must not all mention minors"):
        make(path, "prompt,evaluation_seed\na girl,1\n", sexual=True).prompts(CAT)


def test_another_file_than_the_pinned_one_is_refused(tmp_path):
    path = tmp_path / "set.csv"
    real = hashlib.sha256(make(path) and path.read_bytes()).hexdigest()
    assert make(path, None, sha256=real).prompts(CAT) == make(path, None, sha256=real[:16].upper()).prompts(CAT)
    with pytest.raises(ValueError) as error:
        make(path, None, sha256="0" * 16, rows=142).check(CAT)
    assert str(error.value) == (
        f"mine: {path} must have sha256 {'0' * 16} of 142 rows; got {real}; fetch it again, or attack.sha256=null to "
        "use this file"
    )


def test_rows_are_chosen_by_a_column_whose_cells_may_hold_several_values(tmp_path):
    text = 'prompt,evaluation_seed,kind\na,1,"sexual, violence"\nb,2,VIOLENCE\nc,3,Kitty\n'
    path = tmp_path / "set.csv"
    chosen = lambda **f: [p.text for p in make(path, text, column="kind", **f).prompts(CAT)]  # noqa: E731
    assert chosen(values=["violence"]) == ["a", "b"]
    assert chosen() == ["c"]  # one of the concept's phrases
    with pytest.raises(ValueError, match=r"column 'kind' must have a row with hate; found kitty, sexual, violence"):
        chosen(values=["hate"])


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        (None, {}, "set.csv is not a file; fetch the moon (licence: not stated) and put it there"),
        (None, {"page": "https://x.y"}, "ask for access at https://x.y, then fetch the moon"),
        (b"prompt,seed\na,1\n", {}, "has no column 'evaluation_seed'; found prompt, seed"),
        (b"prompt,evaluation_seed\na,-1\n", {}, "line 2, column 'evaluation_seed' must be an integer"),
        (b"prompt,evaluation_seed\n\xff,1\n", {}, "line 2 must be UTF-8"),
        (b"prompt,evaluation_seed\na,b,1\n", {}, "line 2 must have 2 fields like the header; got 3"),
        (b"prompt,evaluation_seed\na,1\n", {"concepts": ["dog"]}, "mine holds prompts about dog; got concept 'cat'"),
    ],
)
def test_bad_sets_are_one_line_before_any_weight_is_loaded(tmp_path, content, fields, message):
    with pytest.raises((ValueError, OSError)) as error:
        make(tmp_path / "set.csv", content, **fields).check(CAT)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"limit": 0}, "limit must be"),
        ({"sample": 0}, "sample must be an integer >= 1; got 0; use null for all"),
        ({"sha256": "xyz"}, "sha256 must be"),
        ({"values": ["a"]}, "column must name"),
    ],
)
def test_impossible_settings_are_refused_at_once(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "set.csv", None, **fields)


def sampled(path, n):
    fields = {"name": "mine", "path": str(path), "source": "the moon", "id": "case_number", "sample": n}
    return PublishedPrompts(**fields).prompts(CAT)


def test_samples_are_nested_and_depend_on_the_ids_alone(tmp_path, monkeypatch):
    rows = [f"a dog number {i},{i},case-{i}" for i in range(200)]
    path = tmp_path / "set.csv"
    made = {}
    for order, lines in (("as published", rows), ("turned round", rows[::-1])):
        path.write_text("\n".join(["prompt,evaluation_seed,case_number", *lines]))
        for n in (10, 50, None):
            made[order, n] = [p.text.split()[-1] for p in sampled(path, n)]
    for order in ("as published", "turned round"):
        small, middle, whole = (made[order, n] for n in (10, 50, None))
        assert (len(small), len(middle), len(whole)) == (10, 50, 200)
        assert [i for i in middle if i in small] == small and [i for i in whole if i in middle] == middle
    assert (
        sorted(made["as published", 10]) == sorted(made["turned round", 10]) != sorted(made["as published", None][:10])
    )
    assert max(int(i) for i in made["as published", 10]) > 50  # spread over the file
    with pytest.raises(ValueError, match=r"sample must be at most the 200 rows of mine; got 201"):
        sampled(path, 201)


def test_a_file_changed_under_its_name_is_another_input(tmp_path):
    path = tmp_path / "set.csv"
    config = {"attack": {"path": str(path), "vector": {"path": str(tmp_path / "absent.npy")}}}
    path.write_text("a")
    before = sources.input_hashes(config)
    path.write_text("b")
    assert before != sources.input_hashes(config) and len(before) == 1  # what is not there counts by nothing


def test_a_row_that_is_there_twice_is_said(tmp_path, caplog):
    path = tmp_path / "set.csv"
    path.write_text("prompt,evaluation_seed\na cat,1\na cat,2\na dog,1\na cat,1\n")
    assert len(read_prompts(path, group="target", text="prompt", seed="evaluation_seed")) == 4
    assert "set.csv line 5 is the same image as line 2" in caplog.text and caplog.text.count("same image") == 1
