"""Each image is judged once, and every prompt gets its own verdict."""

from __future__ import annotations

import pytest
from PIL import Image

from erasebench.judges.judging import judge_images
from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Prompt, Verdict


class Brightness:
    """Sees ``light`` in bright images and ``dark`` in the others; counts what it is shown."""

    name = "brightness"

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, images, concepts):
        self.shown += len(images)
        labels = ["light" if image.getpixel((0, 0))[0] > 127 else "dark" for image in images]
        return [
            Verdict(present=label == concept, score=0.9, label=label)
            for label, concept in zip(labels, concepts, strict=True)
        ]


def image_set(folder, rows):
    write_shard(folder, 0, [(prompt.digest(), image, status) for prompt, image, status in rows])
    return ImageSet(key=folder.name, folder=folder, prompts=tuple(prompt for prompt, _, _ in rows))


def picture(level):
    return Image.new("RGB", (8, 8), (level, level, level))


@pytest.fixture
def rows():
    """Every fifth image failed, every seventh prompt names nothing; levels alternate."""
    made = []
    for i in range(30):
        prompt = Prompt(id=f"p{i}", text=f"text {i}", seed=i, concept="" if i % 7 == 0 else "light")
        failed = i % 5 == 0
        made.append((prompt, None if failed else picture(250 * (i % 2)), "nan" if failed else "ok"))
    return made


def test_verdicts_belong_to_their_prompts(tmp_path, rows):
    judged = judge_images(Brightness(), image_set(tmp_path / "a", rows), batch_size=4)
    assert [prompt.id for prompt, _, _ in judged] == [prompt.id for prompt, _, _ in rows if prompt.concept]
    for prompt, verdict, status in judged:
        i = int(prompt.id[1:])
        assert status == ("nan" if i % 5 == 0 else "ok")
        assert (verdict is None) == (i % 5 == 0)
        assert verdict is None or verdict.present == bool(i % 2)


def test_an_image_is_judged_once(tmp_path, rows):
    judge = Brightness()
    images = image_set(tmp_path / "b", rows)
    first = judge_images(judge, images)
    shown = judge.shown
    assert shown == sum(1 for prompt, image, _ in rows if prompt.concept and image is not None)
    assert judge_images(judge, images.only(["target"]), batch_size=3) == first
    assert judge.shown == shown


def test_verdicts_of_other_images_judges_and_concepts_are_not_reused(tmp_path):
    judge = Brightness()
    prompt = Prompt(id="p", text="t", concept="light")
    light = image_set(tmp_path / "light", [(prompt, picture(250), "ok")])
    dark = image_set(tmp_path / "dark", [(prompt, picture(0), "ok")])
    assert judge_images(judge, light)[0][1].present and not judge_images(judge, dark)[0][1].present
    asked = ImageSet(key=light.key, folder=light.folder, prompts=(prompt.with_(concept="dark"),))
    assert not judge_images(judge, asked)[0][1].present
    other = Brightness()
    judge_images(other, light)
    assert (judge.shown, other.shown) == (3, 1)


def test_a_judge_that_loses_images_is_an_error(tmp_path, rows):
    class Lossy(Brightness):
        def __call__(self, images, concepts):
            return super().__call__(images, concepts)[1:]

    with pytest.raises(ValueError, match="one verdict per image"):
        judge_images(Lossy(), image_set(tmp_path / "c", rows))


def test_an_image_that_is_missing_in_one_folder_is_judged_in_another(tmp_path):
    prompt = Prompt(id="p", text="t", concept="light")
    folders = {"broken": (None, "nan"), "whole": (picture(250), "ok"), "broken again": (None, "nan")}
    judge, found = Brightness(), []
    for name, (image, status) in folders.items():
        drawn = image_set(tmp_path / name, [(prompt, image, status)])
        found += judge_images(judge, ImageSet(key="equal", folder=drawn.folder, prompts=drawn.prompts))
    assert [(status, verdict is not None) for _, verdict, status in found] == [
        ("nan", False),
        ("ok", True),
        ("nan", False),
    ]
