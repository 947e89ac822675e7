import json

import numpy as np
import pytest
from PIL import Image

from erasebench import compare
from erasebench.building import build
from erasebench.cell import image_set
from erasebench.store.images import write_shard
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


def run_of(root, method, colour, stripes=1, **changes):
    config = {"model": MODEL, "concept": CONCEPT, "also": [], "prompts": PROMPTS} | changes
    folder = root / "runs" / "emoji" / "cat" / method / "none" / "seed0"
    folder.mkdir(parents=True)
    record = {"identity": config, "config": config, "model_hash": "m", "steps": {"erase": {"key": method}}}
    (folder / "run.json").write_text(json.dumps(record))
    for weights, shade in (("m", 200), (method, colour)):
        concepts = [build(node) for node in (config["concept"], *config["also"])]
        concept = joint(concepts) if len(concepts) > 1 else concepts[0]
        images = image_set(root, weights, MODEL, build(config["prompts"]).prompts(concept))
        pixels = np.full((64, 64, 3), shade, np.uint8)
        pixels[::2] //= stripes  # which blurring takes away
        picture = Image.fromarray(pixels)
        write_shard(images.folder, 0, [(p.digest(), picture, "ok") for p in images.prompts])


def test_a_column_for_the_original_and_each_method(tmp_path):
    run_of(tmp_path, "uce", 100)
    run_of(tmp_path, "esd_x", 20)
    page = np.asarray(compare.compare(tmp_path, "cat", methods=["uce", "esd_x"], tile=40))
    assert [int(page[-30, 330 + 46 * i + 20].mean()) for i in range(3)] == [200, 100, 20]
    everything = np.asarray(compare.compare(tmp_path, "cat", tile=40))
    assert [int(everything[-30, 330 + 46 * i + 20].mean()) for i in range(3)] == [200, 20, 100]


def test_the_command_writes_a_picture_or_says_what_is_wrong(tmp_path, capsys):
    run_of(tmp_path, "uce", 100)
    out = tmp_path / "page.png"
    assert compare.main(["concept=cat", f"results={tmp_path}", f"out={out}"]) == 0
    assert Image.open(out).width == 330 + 2 * 78 + 12
    for arguments, message in (
        (["concept=dog", f"results={tmp_path}"], "found none; run some first"),
        (["concept=cat", f"results={tmp_path}", "method=rece"], "run that method with attack=none first"),
        (["results=there"], "concept= is needed"),
        (["concept=cat", "methods=uce"], "unknown argument 'methods'"),
        (["concept=cat", f"results={tmp_path}", "tile=big"], "invalid literal"),
    ):
        assert compare.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_all_erased_concepts_decide_on_prompts_and_blur(tmp_path):
    spread = {}
    for kind in ("object", "unsafe"):
        other = CONCEPT | {"name": "gun", "phrases": ["gun"], "kind": kind}
        run_of(tmp_path / kind, "uce", 100, stripes=2, also=[other], model=MODEL | {"blur_unsafe": True})
        page = np.asarray(compare.compare(tmp_path / kind, "cat", tile=64), float)
        spread[kind] = page[-60:-30, 350:370].std()
    assert spread["unsafe"] < spread["object"] / 4


def test_runs_on_other_prompts_do_not_stand_side_by_side(tmp_path):
    run_of(tmp_path, "uce", 100)
    run_of(tmp_path, "esd_x", 20, prompts=PROMPTS | {"seed": 1})
    with pytest.raises(ValueError, match="must have the prompts config of esd_x"):
        compare.compare(tmp_path, "cat")
