"""The sheet: rows and columns, verdicts as marks and counts, long and foreign texts, blur."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from erasebench import store
from erasebench.report import contact_sheet as sheet
from erasebench.report import lettering
from erasebench.report.contact_sheet import CAPTION, GAP, LABEL, SEEN, TILE, UNSEEN, contact_sheet
from erasebench.report.pictures import save
from erasebench.report.verdicts import count, verdicts
from erasebench.store.images import ImageSet
from erasebench.types import Prompt

GROUPS = ["target"] * 5 + ["attack"] * 2 + ["neighbour"] * 3
SHADE = 150


def image_set(root, key, colour, text="a cat"):
    prompts = tuple(
        Prompt(
            id=f"{g}-{i}", text=f"{text} {i}", seed=i, group=g, concept="cat", relation="visual" * (g == "neighbour")
        )
        for i, g in enumerate(GROUPS)
    )
    noisy = np.random.default_rng(0).integers(0, 60, (64, 64, 3), dtype=np.uint8)
    rows = [(p.digest(), Image.fromarray(noisy + np.uint8(colour)), "ok") for p in prompts[1:]]
    folder = store.image_folder(root, key)
    store.write_shard(folder, 0, [*rows, (prompts[0].digest(), None, "nan")])
    return ImageSet(key=key, folder=folder, prompts=prompts)


@pytest.fixture
def sets(tmp_path):
    return {"original": image_set(tmp_path, "a", 0), "erased": image_set(tmp_path, "b", SHADE)}


def has(pixels, colour):
    return int((np.asarray(pixels) == colour).all(axis=-1).sum())


def column(i, tile=TILE):
    """The x range of a column's images."""
    return slice(LABEL + i * (tile + GAP), LABEL + i * (tile + GAP) + tile)


def test_rows_are_prompts_and_columns_original_and_erased(sets):
    page = contact_sheet(sets, title="cat erased by nothing", per_group=3)
    assert page.height > 8 * TILE and page.width < LABEL + 2 * (TILE + GAP) + 20
    last = np.asarray(page)[-60:-40]
    assert last[:, column(0)].mean() < 90 < 140 < last[:, column(1)].mean()
    assert LABEL < 2 * TILE  # pictures have more room than words


def test_blur_hides_detail(sets):
    sharp, soft = (
        np.asarray(contact_sheet(sets, title="t", per_group=2, blur=blur), float)[-100:-20, column(0)]
        for blur in (False, True)
    )
    assert soft.std() < sharp.std() / 4


def said(present, score=0.97):
    return {(p, f"{p}-{i}"): (present, score) for i, p in enumerate(GROUPS)}


def test_marks_say_what_the_judge_saw(sets):
    plain = contact_sheet(sets, title="t", per_group=2)
    assert has(plain, SEEN) == has(plain, UNSEEN) == 0
    marked = contact_sheet(sets, title="t", per_group=2, verdicts={"original": said(True), "erased": said(False, 0.0)})
    assert marked.height > plain.height + 5 * CAPTION  # a caption under every image
    pixels = np.asarray(marked)
    frame = 4 * TILE * sheet.FRAME
    left, right = pixels[:, : column(1).start - sheet.FRAME], pixels[:, column(1).start - 1 :]
    assert has(left, SEEN) > 6 * frame and has(left, UNSEEN) == 0
    assert has(right, UNSEEN) > 6 * 4 * TILE * 0.9 and has(right, SEEN) == 0
    caption = pixels[-CAPTION:, column(0)].astype(int)
    assert (caption[..., 2] - caption[..., 0] > 60).sum() > 20  # cat 0.97, in the frame's blue
    assert np.ptp(np.dot(np.array([SEEN, UNSEEN]), [0.299, 0.587, 0.114])) > 60  # told apart without hue


def test_a_failed_image_has_no_mark(sets):
    spared = {k: v for k, v in said(True).items() if k != ("target", "target-0")}
    page = contact_sheet(sets, title="t", per_group=5, verdicts={"original": spared})
    whole = contact_sheet(sets, title="t", per_group=5, verdicts={"original": said(True)})
    assert page.size == whole.size and has(page, SEEN) < has(whole, SEEN)
    assert has(page, (190, 40, 40)) > TILE  # crossed out instead


def test_counts_are_of_all_images_of_a_group_not_of_those_shown(sets, monkeypatch):
    written = []
    monkeypatch.setattr(sheet, "write", lambda draw, place, text, *rest: written.append(text))
    original = said(False) | {("target", "target-2"): (True, None)}
    contact_sheet(sets, title="t", per_group=1, verdicts={"original": original, "erased": {}})
    assert {"1 of 5", "0 of 2", "0 of 3"} <= set(written) and "0 of 0" not in written
    assert "no 0.97" in written and "target" in written


def scores(*rows):
    names = ["side", "group", "prompt_id", "evaluator", "judge", "role", "place", "value", "status"]
    return pd.DataFrame(rows, columns=names).astype({"place": "Int64"})


def test_verdicts_are_read_by_role_from_the_judge_with_the_smallest_place():
    frame = scores(
        ("erased", "target", "a", "mine", "j", "present", 10, 1.0, "ok"),
        ("erased", "target", "a", "mine", "j", "", pd.NA, 0.8, "ok"),
        ("erased", "target", "a", "late", "k", "present", 90, 0.0, "ok"),
        ("erased", "target", "b", "mine", "j", "present", 10, float("nan"), "nan"),
        ("erased", "target", "b", "late", "k", "present", 90, 1.0, "ok"),
        ("erased", "unrelated", "a", "mine", "j", "kept", 40, 0.0, "ok"),
        ("erased", "target", "a", "clip", "", "similarity", 70, 27.0, "ok"),
        ("original", "target", "a", "mine", "j", "present", 10, 0.0, "ok"),
        ("erased", "kept", None, "fid", "", "distance", 80, 3.0, "ok"),
    )
    found = verdicts(frame, "erased")
    assert found == {("target", "a"): (True, 0.8), ("target", "b"): (True, None), ("unrelated", "a"): (False, None)}
    assert verdicts(frame, "original") == {("target", "a"): (False, None)}
    assert count(found, "target", ["a", "b", "c"]) == (2, 2)


def ink(text, size=14):
    page = Image.new("RGB", (600, 30), "white")
    lettering.write(ImageDraw.Draw(page), (5, 20), text, (0, 0, 0), size)
    return np.asarray(page)


def test_a_character_no_font_has_is_named_instead_of_boxed():
    assert lettering.readable("火 a\u200d\ufe0f cat\t\n b") == "U+706B a cat b"
    assert lettering.readable("tab\x16") == "tabU+0016" and lettering.readable("\U0001f9ff") == ":nazar amulet:"
    assert lettering.readable("naïve Ωμέγα Привет → ☂") == "naïve Ωμέγα Привет → ☂"  # drawn, by the spare font
    box = ink("\U0010ffff")
    assert not any(np.array_equal(ink(char), box) for char in "Ωж→☂")
    assert np.array_equal(ink("火"), ink("U+706B"))


def test_long_texts_are_cut_with_an_ellipsis():
    text = "a very long prompt " * 20
    found = lettering.lines(text, 12, 3, 150)
    assert len(found) == 3 and found[-1].endswith("…") and text.startswith(" ".join(found[:2]))
    assert all(lettering.width(line, 12) <= 150 for line in found)
    assert lettering.lines("x" * 100, 12, 2, 80)[1].endswith("x…")
    assert lettering.lines("negative_prompt", 12, 3, 60) == ["negative_", "prompt"]
    assert lettering.lines("short", 12, 3, 150) == ["short"]


@pytest.mark.parametrize("text", ["a prompt with no end " * 30, "w" * 400, "火" * 80, "🦊🚀 " * 60, ""])
def test_no_text_leaves_its_column(tmp_path, text):
    sets = {"original": image_set(tmp_path, "a", 0, text)}
    pixels = np.asarray(contact_sheet(sets, title="t", per_group=2))
    assert (pixels[60:, LABEL - 10 : LABEL - 5] == 255).all()


def test_pages_are_written_as_what_their_name_says(sets, tmp_path):
    page = contact_sheet(sets, title="t", per_group=1)
    assert Image.open(save(page, tmp_path / "a.png")).size == page.size
    assert save(page, tmp_path / "new" / "a.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match=r"out must end in .png or .pdf; got a.jpg"):
        save(page, tmp_path / "a.jpg")
