"""Columns side by side: which runs are found, what they are called, what they share."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from erasebench import compare
from erasebench.building import build
from erasebench.report.contact_sheet import GAP, LABEL
from erasebench.store.images import image_folder, write_shard
from erasebench.types import joint

PROMPTS = {
    "_target_": "erasebench.prompts.templates.TemplatePrompts", "templates": ["a {object}"], "objects": ["cat", "dog"],
    "styles": [], "backgrounds": [], "n": {"target": 3, "paraphrase": 0, "neighbour": 0, "unrelated": 0, "coco": 0},
    "seed": 0,
}  # fmt: skip
CONCEPT = {"_target_": "erasebench.types.Concept", "name": "cat", "phrases": ["cat"], "kind": "object"}
MODEL = {
    "name": "emoji", "steps": 2, "guidance_scale": 3.0, "height": None, "width": None, "dtype": "float32",
    "blur_unsafe": False,
}  # fmt: skip
clock = iter(range(1_000_000, 2_000_000))


def run_of(root, method, colour, stripes=1, attack="none", folder=None, key=None, recipe="paper", **changes):
    config = {"model": MODEL, "concept": CONCEPT, "also": [], "prompts": PROMPTS, "seed": 0} | changes
    place = root / "runs" / "emoji" / config["concept"]["name"] / (folder or method) / attack / f"seed{config['seed']}"
    place.mkdir(parents=True)
    names = {"model": "emoji", "concept": config["concept"]["name"], "method": method, "recipe": recipe}
    key = key or folder or method
    concepts = [build(node) for node in (config["concept"], *config["also"])]
    prompts = build(config["prompts"]).prompts(joint(concepts) if len(concepts) > 1 else concepts[0])
    keys = {}
    for side, weights, shade in (("original", "m", 200), ("erased", key, colour)):
        keys[side] = f"{weights}-{config['model']['steps']}"
        pixels = np.full((64, 64, 3), shade, np.uint8)
        pixels[::2] //= stripes  # which blurring takes away
        picture = Image.fromarray(pixels)
        write_shard(image_folder(root, keys[side]), 0, [(p.digest(), picture, "ok") for p in prompts])
    steps = {"erase": {"key": key}, "draw": {"keys": keys}}
    record = {"identity": config | {"names": names}, "config": config, "model_hash": "m", "steps": steps}
    (place / "run.json").write_text(json.dumps(record))
    os.utime(place / "run.json", (now := next(clock), now))  # each newer than the one before


def shades(page, columns, tile):
    """Grey value of the last row's image in every column."""
    pixels = np.asarray(page)
    return [int(pixels[-30, LABEL + (tile + GAP) * i + tile // 2].mean()) for i in range(columns)]


def page_of(root, methods=(), tile=40):
    columns, _ = compare.choose(compare.find(root), methods)
    return compare.compare(columns, tile=tile), list(columns)


def test_a_column_for_the_original_and_each_method(tmp_path):
    run_of(tmp_path, "uce", 100)
    run_of(tmp_path, "esd_x", 20)
    run_of(tmp_path, "none", 200, key="m")
    page, names = page_of(tmp_path, ["uce", "esd_x"])
    assert shades(page, 3, 40) == [200, 100, 20] and names == ["uce", "esd_x"]
    page, names = page_of(tmp_path)
    assert shades(page, 3, 40) == [200, 20, 100] and names == ["esd_x", "uce"]  # the original once


def test_right_after_one_attacked_run_it_shows_what_there_is(tmp_path, capsys):
    run_of(tmp_path, "rece", 60, attack="ringabell")
    assert compare.main([f"results={tmp_path}"]) == 0
    assert "compare_cat.png" in (said := capsys.readouterr().out) and "(original, rece)" in said
    with Image.open(tmp_path / "compare_cat.png") as page:
        assert shades(page, 2, 72) == [200, 60]
    assert (tmp_path / "compare_cat.pdf").read_bytes().startswith(b"%PDF")


def test_the_newest_run_says_which_concept_model_and_seed(tmp_path, capsys):
    dog = {"concept": CONCEPT | {"name": "dog", "phrases": ["dog"]}}
    run_of(tmp_path, "uce", 100)
    run_of(tmp_path, "uce", 80, key="d", **dog)
    assert compare.main([f"results={tmp_path}"]) == 0 and "compare_dog" in capsys.readouterr().out
    assert compare.main([f"results={tmp_path}", "concept=cat"]) == 0 and "compare_cat" in capsys.readouterr().out


def test_names_are_those_of_the_tables_with_what_tells_them_apart(tmp_path):
    run_of(tmp_path, "uce[lamb=5,steps=2]", 100, folder="uce_lamb")
    run_of(tmp_path, "uce", 20, folder="uce-paper")
    run_of(tmp_path, "uce", 60, recipe="uce_emoji")
    _, names = page_of(tmp_path)
    assert set(names) == {"uce (paper)", "uce (uce_emoji)", "uce[lamb=5,steps=2]"}
    _, names = page_of(tmp_path, ["uce-paper", "uce[lamb=5,steps=2]"])
    assert names == ["uce-paper", "uce[lamb=5,steps=2]"]
    command = [f"results={tmp_path}", "method=uce[lamb=5,steps=2],uce-paper"]
    assert compare.main(command) == 0


def test_the_command_writes_a_picture_or_says_what_is_wrong(tmp_path, capsys):
    run_of(tmp_path, "uce", 100)
    out = tmp_path / "page.png"
    assert compare.main(["concept=cat", f"results={tmp_path}", f"out={out}"]) == 0
    assert Image.open(out).width < LABEL + 2 * (72 + GAP) + 20 and not (tmp_path / "page.pdf").exists()
    for arguments, message in (
        (["concept=dog", f"results={tmp_path}"], "must hold finished runs of concept=dog; found none"),
        (["concept=cat", f"results={tmp_path}", "method=rece"], "method 'rece' must have been run; found uce"),
        ([f"results={tmp_path / 'no'}"], "must hold finished runs; found none"),
        (["concept=cat", "methods=uce"], "did you mean method?"),
        (["concept"], "'concept' - must be key=value"),
        (["concept=cat", f"results={tmp_path}", "tile=big"], "tile - must be an integer; got 'big'"),
        (["concept=cat", f"results={tmp_path}", "out=a.jpg"], "out must end in .png or .pdf"),
    ):
        assert compare.main(arguments) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    (tmp_path / "only").mkdir()
    run_of(tmp_path / "only", "none", 200, key="m")
    assert compare.main([f"results={tmp_path / 'only'}"]) == 2
    assert "must hold a run that erases cat; found method=none" in capsys.readouterr().err


def test_all_erased_concepts_decide_on_prompts_and_blur(tmp_path):
    spread = {}
    for kind in ("object", "unsafe"):
        other = CONCEPT | {"name": "gun", "phrases": ["gun"], "kind": kind}
        run_of(tmp_path / kind, "uce", 100, stripes=2, also=[other], model=MODEL | {"blur_unsafe": True})
        page = np.asarray(page_of(tmp_path / kind, tile=64)[0], float)
        spread[kind] = page[-60:-30, LABEL + 20 : LABEL + 40].std()
    assert spread["unsafe"] < spread["object"] / 4


def test_a_longer_run_stands_beside_a_shorter_one_with_the_prompts_of_both(tmp_path):
    run_of(tmp_path, "uce", 100)
    run_of(tmp_path, "rece", 50, prompts=PROMPTS | {"n": {"target": 7}})
    columns, unfit = compare.choose(compare.find(tmp_path))
    assert len(compare.shared_prompts(columns)) == 3 and not unfit
    assert shades(compare.compare(columns, tile=40), 3, 40) == [200, 50, 100]


def test_what_shares_no_image_with_the_newest_run_is_left_out(tmp_path, capsys):
    run_of(tmp_path, "rece", 30, prompts=PROMPTS | {"seed": 1})
    run_of(tmp_path, "uce", 100)
    run_of(tmp_path, "esd_x", 20)
    for file in image_folder(tmp_path, "uce-2").iterdir():
        file.unlink()
    assert compare.main([f"results={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "left out: rece" in said and "left out: uce" in said and "(original, esd_x)" in said


def test_of_two_runs_with_one_name_the_newer_is_shown(tmp_path):
    run_of(tmp_path, "uce", 100)
    run_of(tmp_path, "uce", 30, attack="reseed", key="another-version-of-the-code")
    page, names = page_of(tmp_path)
    assert shades(page, 2, 40) == [200, 30] and names == ["uce"]


def test_what_does_not_fit_beside_is_left_out_or_refused(tmp_path, capsys):
    run_of(tmp_path, "uce", 100, model=MODEL | {"steps": 5})
    run_of(tmp_path, "esd_x", 20)
    assert compare.main([f"results={tmp_path}"]) == 0
    assert "left out: uce" in (said := capsys.readouterr().out) and "(original, esd_x)" in said
    assert compare.main([f"results={tmp_path}", "method=esd_x,uce"]) == 2
    assert "uce must have been run on the model, drawing settings and concept of esd_x" in capsys.readouterr().err
    run_of(tmp_path, "rece", 30, prompts=PROMPTS | {"seed": 1})
    with pytest.raises(ValueError, match="must have drawn the same prompts; they share none"):
        page_of(tmp_path, ["rece", "esd_x"])
