import numpy as np
from PIL import Image

from erasebench import store
from erasebench.report.contact_sheet import contact_sheet
from erasebench.store.images import ImageSet
from erasebench.types import Prompt


def image_set(root, key, colour):
    groups = ["target"] * 5 + ["attack"] * 2 + ["neighbour"] * 3
    prompts = tuple(
        Prompt(id=f"{g}-{i}", text=f"a cat {i}", seed=i, group=g, concept="cat", relation="visual" * (g == "neighbour"))
        for i, g in enumerate(groups)
    )
    noisy = np.random.default_rng(0).integers(0, 60, (64, 64, 3), dtype=np.uint8)
    rows = [(p.digest(), Image.fromarray(noisy + np.uint8(colour)), "ok") for p in prompts[1:]]
    folder = store.image_folder(root, key)
    store.write_shard(folder, 0, [*rows, (prompts[0].digest(), None, "nan")])
    return ImageSet(key=key, folder=folder, prompts=prompts)


def test_rows_are_prompts_and_columns_original_and_erased(tmp_path):
    original, erased = image_set(tmp_path, "a", 0), image_set(tmp_path, "b", 150)
    page = contact_sheet({"original": original, "erased": erased}, title="cat erased by nothing", per_group=3)
    assert page.height > 8 * 112
    pixels = np.asarray(page)
    left, right = pixels[-60, 330 + 40], pixels[-60, 330 + 118 + 40]
    assert left.mean() < 90 < 140 < right.mean()


def test_blur_hides_detail(tmp_path):
    original, erased = image_set(tmp_path, "a", 0), image_set(tmp_path, "b", 150)
    sets = {"original": original, "erased": erased}
    sharp = np.asarray(contact_sheet(sets, title="t", per_group=2), float)[-100:-20, 340:430]
    soft = np.asarray(contact_sheet(sets, title="t", per_group=2, blur=True), float)[-100:-20, 340:430]
    assert soft.std() < sharp.std() / 4
