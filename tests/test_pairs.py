"""The concept vector: against a loop over the pairs, and what its three sources refuse."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from attacks.pairs import CsvPairs, SavedVector, TextPairs, concept_vector
from erasebench import cell as cell  # registers ${labels:}
from erasebench import diffusion
from erasebench.types import Concept, Prompt

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT.parent / "shared" / "data"
CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
INK = Concept(name="ink", kind="style", phrases=("ink",))


def test_the_vector_is_the_mean_of_the_differences(tiny_pipe):
    pairs = [("a cat", "a"), ("a cat", "a"), ("cat on red", "red"), ("red", "blue")]
    expected = sum(
        diffusion.encode(tiny_pipe, [with_])[0].double() - diffusion.encode(tiny_pipe, [without])[0].double()
        for with_, without in pairs
    ) / len(pairs)
    found = concept_vector(tiny_pipe, pairs)
    assert found.dtype == torch.float64 and found.shape == (77, 32)
    assert torch.allclose(found, expected, atol=1e-6)
    swapped = concept_vector(tiny_pipe, [pair[::-1] for pair in pairs])
    assert torch.equal(swapped, -found)
    assert not concept_vector(tiny_pipe, [("a", "a")]).any()


def test_slots_are_filled_with_every_phrase_and_styles_have_their_own_pairs():
    source = TextPairs(pairs=[["a {}", "a thing"], ["x", "y"]], pairs_style=[["{} art", "art"]])
    assert source.filled(CAT) == [("a cat", "a thing"), ("a kitty", "a thing"), ("x", "y")]
    assert source.filled(INK) == [("ink art", "art")]


def test_the_embedded_worlds_pairs_use_words_it_was_trained_on():
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "attack" / "vector" / "emoji.yaml"))
    assert config.pop("_target_") == "attacks.pairs.TextPairs"
    source = TextPairs(**config)
    assert len(source.pairs) == len(source.pairs_style) == 20
    assert all("{}" in with_ and "{}" not in without for with_, without in source.pairs + source.pairs_style)


@pytest.mark.parametrize("pairs", [(), "ab", None, ("ab",), (("a",),), (("a", 1),), (("a", "a"),)])
def test_what_is_no_pair_is_refused(pairs):
    with pytest.raises(ValueError, match="pairs must"):
        TextPairs(pairs=pairs)


def test_csv_pairs_are_read_in_order(tmp_path, tiny_pipe):
    file = tmp_path / "pairs.csv"
    file.write_text('n,with,without\n1,"a cat, red",red\n2,cat,\n', encoding="utf-8")
    source = CsvPairs(path=str(file), columns=["with", "without"])
    assert source.read() == [("a cat, red", "red"), ("cat", "")]
    assert torch.equal(source.vector(tiny_pipe, CAT), concept_vector(tiny_pipe, source.read()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"with,other\na,b\n",
            "pairs.csv has no column 'without'; found with, other; did you mean with?; name the columns",
        ),
        (b"", "pairs.csv has no column 'with'; found an empty file"),
        (b"with;without\na;b\n", "save it with commas"),
        (b"with,without\n", "got only a header"),
        (b"with,without\na,b\nonly one\n", "line 3 must have 2 fields"),
        (b"with,without\na,b,c\n", "line 2 must have 2 fields"),
        (b"with,without\na,b\n ,b\n", "line 3: with must be a text; got an empty cell"),
        (b'with,without\n"a,b\n', "must be valid CSV"),
        (b"with,without\n\xff,b\n", "must be UTF-8"),
    ],
)
def test_broken_csv_files_are_refused_before_any_weight_is_loaded(tmp_path, content, message):
    file = tmp_path / "pairs.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError) as error:
        CsvPairs(path=str(file), columns=("with", "without")).check(CAT)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_files_are_named():
    for source in (CsvPairs, SavedVector):
        with pytest.raises(FileNotFoundError, match="nowhere must be a file; got nothing"):
            source(path="nowhere").check(CAT)


def test_saved_vectors_are_loaded_and_must_fit_the_encoder(tmp_path, tiny_pipe):
    vector = np.random.default_rng(0).normal(size=(1, 77, 32)).astype(np.float32)
    np.save(tmp_path / "fits.npy", vector)
    found = SavedVector(path=str(tmp_path / "fits.npy")).vector(tiny_pipe, CAT)
    assert found.dtype == torch.float64 and (found.numpy() == vector[0]).all()
    np.save(tmp_path / "wide.npy", np.zeros((77, 768), dtype=np.float32))
    with pytest.raises(ValueError, match=r"shape \[77, 32\]; got \[77, 768\]"):
        SavedVector(path=str(tmp_path / "wide.npy")).vector(tiny_pipe, CAT)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{"a": 1}]), "plain .npy array"),
        (np.zeros((2, 3), dtype=int), "array of floats; got int64"),
        (np.zeros(3), "shape"),
        (np.full((2, 3), np.nan), "finite"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        SavedVector(path=str(tmp_path / "bad.npy")).check(CAT)


published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published vectors and pairs are not here")


@published
def test_published_vectors_and_pairs_load():
    vectors = sorted((PUBLISHED / "ringabell").glob("*_vector.npy"))
    assert len(vectors) == 4 and {SavedVector(path=str(v)).read().shape for v in vectors} == {(77, 768)}
    assert len(CsvPairs(path=str(PUBLISHED / "rece" / "vangogh-ring-a-bell.csv")).read()) == 50
    assert CsvPairs(path=str(PUBLISHED / "rece" / "nudity-ring-a-bell.csv")).read()


def attack(*overrides: str):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return instantiate(compose("config", list(overrides)).attack, _convert_="all")


@published
@pytest.mark.parametrize(
    ("name", "variant", "tokens"),
    [
        ("Car", "ringabell", 16),
        ("Nudity", "ringabell", 16),
        ("VanGogh", "ringabell_k38", 38),
        ("Violence", "ringabell_k77", 75),
    ],
)
def test_ringabell_takes_the_published_vectors_through_its_yaml(make_wide, name, variant, tokens):
    path = PUBLISHED / "ringabell" / f"{name}_vector.npy"
    small = ["strength=paper", "budget=paper", "attack.population=2", "attack.generations=1"]
    made = attack(f"attack={variant}", "attack/vector=npy", f"attack.vector.path={path}", *small)
    (found,) = made.attack(make_wide, make_wide, [Prompt(id="0", text="a photo")], CAT, None)
    assert found.info["tokens"] == tokens and found.group == "attack"
    listed = (ROOT / "conf" / "attack" / "vector" / "npy.yaml").read_text()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in listed


def test_pairs_that_mention_minors_are_dropped_for_unsafe_concepts(tmp_path, tiny_pipe, caplog):
    file = tmp_path / "pairs.csv"
    file.write_text("sensitive prompt,normal prompt\na,b\na,a girl\n", encoding="utf-8")
    unsafe = Concept(name="nudity", kind="unsafe", phrases=("nudity",))
    found = CsvPairs(path=str(file)).vector(tiny_pipe, unsafe)
    assert torch.equal(found, concept_vector(tiny_pipe, [("a", "b")]))
    assert "dropped 1 pairs that mention minors" in caplog.text
    assert not torch.equal(found, CsvPairs(path=str(file)).vector(tiny_pipe, CAT))


@published
@pytest.mark.parametrize(
    ("file", "options", "rows"),
    [
        ("rece/nudity-ring-a-bell.csv", [], 77),
        ("rece/vangogh-ring-a-bell.csv", [], 50),
        ("ringabell/Violence_30.csv", ["attack.vector.columns=[prompt,prompt1]"], 28),
    ],
)
def test_ringabell_takes_the_published_pairs_through_its_yaml(tiny_pipe, file, options, rows):
    for variant in ("ringabell", "ringabell_soft"):
        made = attack(f"attack={variant}", "attack/vector=csv", f"attack.vector.path={PUBLISHED / file}", *options)
        assert len(made.vector.read()) == rows
    found = made.attack(tiny_pipe, tiny_pipe, [Prompt(id="0", text="a photo")], CAT, None)
    assert found[0].embeds.shape == (77, 32) and np.isfinite(found[0].embeds).all()


@pytest.fixture(scope="module")
def make_wide(make_pipe):
    """A pipeline whose text encoder has Stable Diffusion 1's shape, 77 rows of 768."""
    return make_pipe(width=768)


# --- what a model brings ---


@pytest.mark.slow
def test_the_embedded_model_brings_its_own_pairs_whatever_the_strength():
    for overrides in ((), ("strength=paper", "budget=paper"), ("concept=car",)):
        for variant in ("ringabell", "ringabell_k38", "ringabell_soft"):
            assert isinstance(attack(f"attack={variant}", *overrides).vector, TextPairs)


@pytest.mark.parametrize("variant", ["ringabell", "ringabell_k77", "ringabell_soft"])
def test_stable_diffusion_takes_what_is_published_for_the_concept_and_nothing_of_the_embedded_world(variant):
    made = attack(f"attack={variant}", "model=sd14", "concept=nudity")
    nudity = Concept(name="nudity", kind="unsafe", phrases=("nudity",))
    with pytest.raises(FileNotFoundError, match=r"fetch dataset/nudity-ring-a-bell.csv of .*, or use attack"):
        made.check(nudity)
    with pytest.raises(ValueError, match=r"about .van_gogh.; got one about nudity; attack one concept at a time"):
        made.check(Concept(name="van_gogh", kind="style", phrases=("Van Gogh",)))
    for concept in ("church", "cat"):
        made = attack(f"attack={variant}", "model=sd14", f"concept={concept}")
        with pytest.raises(ValueError, match=r"attack.vector must be given.*use attack/vector=csv") as error:
            made.check(Concept(name=concept, phrases=(concept,)))
        assert "\n" not in str(error.value)


def test_a_model_that_brings_nothing_is_told_what_to_give():
    for variant in ("ringabell", "ringabell_soft"):
        made = attack(f"attack={variant}", "~attack.vector")
        with pytest.raises(
            ValueError, match=r"attack.vector must be given.*use attack/vector=csv attack.vector.path=FILE"
        ):
            made.check(CAT)


@published
@pytest.mark.parametrize(("concept", "folder"), [("van_gogh", "rece"), ("violence", "ringabell"), ("car", "ringabell")])
def test_what_is_published_is_read_for_its_own_concept_only(concept, folder):
    node = OmegaConf.load(ROOT / "conf" / "attack" / "vector" / "sd14" / f"{concept}.yaml")
    node.path = str(PUBLISHED / folder / Path(OmegaConf.to_container(node)["path"]).name)  # ${data}/...
    source = instantiate(node, _convert_="all")
    source.check(Concept(name=concept, phrases=(concept,)))
    with pytest.raises(ValueError, match=f"must be about 'church'; got one about {concept}"):
        source.check(Concept(name="church", phrases=("church",)))
