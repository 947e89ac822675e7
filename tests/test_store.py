"""The store under the accidents it exists for: kills, corruption, two writers, full disks."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import save_file

from erasebench import store
from erasebench.command import errors
from erasebench.store.files import NoRoom
from erasebench.store.images import ImageSet
from erasebench.types import Prompt

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:16]


def picture(number: int, size: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8))


def rows(numbers) -> list[store.Row]:
    return [(digest(n), picture(n), "ok") for n in numbers]


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*"))


# --- keys ---


@settings(deadline=None, max_examples=30)
@given(value=st.dictionaries(st.text(), JSON, max_size=4))
def test_key_ignores_the_order_of_dict_keys_and_nothing_else(value):
    shuffled = dict(reversed(value.items()))
    assert store.key(value) == store.key(shuffled)
    assert store.key(value) != store.key({**value, "one more key": 1})


def test_key_tells_apart_what_could_run_together():
    values = [("ab", "c"), ("a", "bc"), (["a", "bc"],), (1,), (1.5,), ("1",), (True,), (None,), ()]
    assert len({store.key(*v) for v in values}) == len(values)
    assert store.key("cat", {"steps": 20}) == "a901c1292654fe4a8a0d"  # a changed hash would orphan every cache


@pytest.mark.parametrize(("part", "error"), [({1, 2}, TypeError), (float("nan"), ValueError), (Path("x"), TypeError)])
def test_key_refuses_what_json_cannot_say(part, error):
    with pytest.raises(error, match="key parts must be"):
        store.key(part)


# --- steps ---


def test_a_step_is_computed_once(tmp_path):
    calls = []

    def make(folder):
        calls.append(1)
        (folder / "sub").mkdir()
        (folder / "sub" / "weights.bin").write_bytes(b"abc")

    folders = {store.step(tmp_path, "erase", "k1", make, {"method": "uce"}) for _ in range(3)}
    assert folders == {tmp_path / "cache" / "erase" / "k1"} and len(calls) == 1
    manifest = store.read_manifest(folders.pop())
    assert manifest["meta"] == {"method": "uce"} and list(manifest["files"]) == ["sub/weights.bin"]


def test_a_failed_step_leaves_nothing_behind(tmp_path):
    def make(folder):
        (folder / "half").write_bytes(b"abc")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        store.step(tmp_path, "erase", "k1", make)
    assert files(tmp_path / "cache" / "erase") == []


DAMAGE = {
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "half a manifest": lambda f: (f / "manifest.json").write_text('{"files": {"a"'),
    "a manifest of another shape": lambda f: (f / "manifest.json").write_text("[1]"),
    "a truncated file": lambda f: (f / "a").write_bytes(b"ab"),
    "a changed byte": lambda f: (f / "a").write_bytes(b"abX"),
    "a lost file": lambda f: (f / "a").unlink(),
    "a foreign file": lambda f: (f / "b").write_bytes(b""),
    "an empty folder": lambda f: [p.unlink() for p in f.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_folder_is_rebuilt(tmp_path, damage):
    make = lambda folder: (folder / "a").write_bytes(b"abc")  # noqa: E731
    folder = store.step(tmp_path, "erase", "k1", make)
    damage(folder)
    assert store.read_manifest(folder) is None
    assert store.step(tmp_path, "erase", "k1", make) == folder
    assert (folder / "a").read_bytes() == b"abc" and store.read_manifest(folder) is not None
    assert files(tmp_path / "cache" / "erase") == ["a", "k1", "manifest.json"]


def test_a_file_where_the_folder_should_be_is_replaced(tmp_path):
    place = tmp_path / "cache" / "erase" / "k1"
    place.parent.mkdir(parents=True)
    place.write_text("not a folder")
    store.step(tmp_path, "erase", "k1", lambda folder: (folder / "a").write_bytes(b"abc"))
    assert (place / "a").read_bytes() == b"abc"


def _killed_while_making(root: str) -> None:
    def make(folder):
        (folder / "a").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    store.step(root, "erase", "k1", make)


def _killed_while_committing(root: str) -> None:
    store.images.pq.write_table = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    store.write_shard(store.image_folder(root, "m"), 1, rows([3, 4]))


def test_a_killed_process_leaves_what_it_committed_and_nothing_else(tmp_path):
    folder = store.image_folder(tmp_path, "m")
    store.write_shard(folder, 0, rows([1, 2]))
    for killed in (_killed_while_making, _killed_while_committing):
        process = multiprocessing.get_context("fork").Process(target=killed, args=(str(tmp_path),))
        process.start()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
    assert store.read_manifest(tmp_path / "cache" / "erase" / "k1") is None
    assert store.missing(folder, [digest(n) for n in (1, 2, 3, 4)]) == [digest(3), digest(4)]
    place = store.step(tmp_path, "erase", "k1", lambda f: (f / "a").write_bytes(b"whole"))
    assert (place / "a").read_bytes() == b"whole"


def test_the_loser_of_a_race_keeps_the_winners_result(tmp_path):
    def slow(folder):
        store.step(tmp_path, "erase", "k1", lambda f: (f / "a").write_bytes(b"winner"))  # finishes in between
        (folder / "a").write_bytes(b"loser")

    folder = store.step(tmp_path, "erase", "k1", slow)
    assert (folder / "a").read_bytes() == b"winner" and files(folder.parent) == ["a", "k1", "manifest.json"]


def _race(root: str, barrier, number: int) -> None:
    barrier.wait()
    for k in range(5):
        store.step(root, "erase", f"k{k}", lambda f: (f / "a").write_bytes(b"x" * 1000))
        store.write_shard(store.image_folder(root, "m"), k, rows(range(k, k + 3)))


def test_processes_at_once_are_harmless(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_race, args=(str(tmp_path), barrier, n)) for n in range(3)]
    [w.start() for w in workers]
    [w.join(30) for w in workers]
    assert [w.exitcode for w in workers] == [0, 0, 0]
    steps = sorted((tmp_path / "cache" / "erase").iterdir())
    assert [s.name for s in steps] == [f"k{k}" for k in range(5)] and all(store.read_manifest(s) for s in steps)
    folder = store.image_folder(tmp_path, "m")
    assert len(list(folder.iterdir())) == 5 and store.missing(folder, [digest(n) for n in range(7)]) == []


def test_old_leftovers_are_removed_and_young_ones_are_not(tmp_path):
    parent = tmp_path / "cache" / "erase"
    old, young = parent / ".k1.1.aa.tmp", parent / ".k1.2.bb.tmp"
    old.mkdir(parents=True)
    young.mkdir()

    os.utime(old, (0, 0))
    store.step(tmp_path, "erase", "k1", lambda folder: (folder / "a").write_bytes(b"abc"))
    assert not old.exists() and young.exists()


# --- a disk that cannot be written ---


def test_an_unwritable_results_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"folder .*file/results cannot be written \(Not a directory\).*results=DIR") as e:
        store.check_writable(tmp_path / "file" / "results")
    assert "\n" not in str(e.value)
    with pytest.raises(OSError, match="cannot be written"):
        store.step(tmp_path / "file", "erase", "k1", lambda folder: None)
    with pytest.raises(OSError, match="cannot be written"):
        store.write_shard(tmp_path / "file", 0, rows([1]))
    assert store.check_writable(tmp_path / "new" / "results").is_dir() and files(tmp_path / "new") == ["results"]


def test_files_have_the_modes_the_user_s_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        folder = store.step(tmp_path, "erase", "k1", lambda work: save_file({"w": np.ones(2)}, work / "w.safetensors"))
        with store.replacing(tmp_path / "w.safetensors") as work:
            save_file({"w": np.ones(2)}, work)
    finally:
        os.umask(before)
    for path in (folder / "w.safetensors", tmp_path / "w.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x"), OSError(errno.EDQUOT, "x"), SafetensorError("code: 28")])
def test_a_full_disk_has_a_name_of_its_own(tmp_path, error):
    def full(_):
        raise error

    with pytest.raises(NoRoom, match="free some space"):
        store.step(tmp_path, "erase", "k1", full)
    assert errors.code(NoRoom("x")) == 1


def test_a_full_disk_is_one_line_and_leaves_no_half_result(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\); free some space") as e:
        store.step(tmp_path, "erase", "k1", full)
    assert "\n" not in str(e.value) and files(tmp_path / "cache" / "erase") == []
    monkeypatch.setattr(store.images.pq, "write_table", full)
    with pytest.raises(OSError, match="free some space"):
        store.write_shard(tmp_path / "images", 0, rows([1]))
    assert files(tmp_path / "images") == []


def test_an_error_of_the_step_itself_is_not_disguised(tmp_path):
    def make(folder):
        (tmp_path / "no such input").read_bytes()

    with pytest.raises(FileNotFoundError, match="no such input"):
        store.step(tmp_path, "erase", "k1", make)


# --- images ---


def test_images_come_back_exactly(tmp_path):
    folder = store.image_folder(tmp_path, "m")
    store.write_shard(folder, 0, [*rows(range(5)), (digest(5), None, "nan"), (digest(6), None, "constant")])
    found = store.read_images(folder, [digest(n) for n in (6, 3, 0, 3, 5)])
    assert found[digest(6)] == (None, "constant") and found[digest(5)] == (None, "nan")
    for n in (0, 3):
        image, status = found[digest(n)]
        assert status == "ok" and image.mode == "RGB" and np.array_equal(np.asarray(image), np.asarray(picture(n)))


def test_a_folder_grows_and_its_files_do_not_depend_on_the_order(tmp_path):
    folder = store.image_folder(tmp_path, "m")
    first = store.write_shard(folder, 2, rows([1, 2, 3]))
    before = first.read_bytes()
    assert store.write_shard(folder, 2, rows([3, 1, 2])) == first and first.read_bytes() == before
    assert store.missing(folder, [digest(n) for n in (9, 1, 4, 9)]) == [digest(9), digest(4)]
    store.write_shard(folder, 0, rows([3, 4]))  # overlaps with what is there
    assert store.missing(folder, [digest(n) for n in (1, 2, 3, 4)]) == []
    assert len(store.read_images(folder, [digest(n) for n in (1, 2, 3, 4)])) == 4


def test_an_absent_folder_misses_everything_and_reading_it_says_so(tmp_path):
    folder = store.image_folder(tmp_path, "m")
    assert store.missing(folder, [digest(1)]) == [digest(1)]
    with pytest.raises(KeyError, match="holds no image of"):
        store.read_images(folder, [digest(1)])


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_a_truncated_file_counts_as_missing_and_is_replaced(tmp_path, keep):
    folder = store.image_folder(tmp_path, "m")
    path = store.write_shard(folder, 0, rows(range(5)))
    whole = path.read_bytes()
    wanted = [digest(n) for n in range(5)]
    assert store.missing(folder, wanted) == []  # the index is warm
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    assert store.missing(folder, wanted) == wanted
    store.write_shard(folder, 0, rows(range(5)))
    assert store.missing(folder, wanted) == [] and path.read_bytes() == whole


def test_a_flipped_byte_is_noticed_and_redrawn_by_the_next_run(tmp_path):
    folder = store.image_folder(tmp_path, "m")
    path = store.write_shard(folder, 0, rows(range(3)))
    data = bytearray(path.read_bytes())
    place = bytes(data).index(b"IDAT") + 20
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(OSError, match="was damaged and has been removed; run the same command again"):
        store.read_images(folder, [digest(n) for n in range(3)])
    assert len(store.missing(folder, [digest(n) for n in range(3)])) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [((digest(1), None, "ok"), "image must be there"), ((digest(1), picture(1), "nan"), "image must be there"),
     ((digest(1), None, "fine"), "status must be one of")],
)  # fmt: skip
def test_an_image_that_contradicts_its_status_is_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        store.write_shard(tmp_path, 0, [row])
    with pytest.raises(ValueError, match="at least one image"):
        store.write_shard(tmp_path, 0, [])


def test_an_image_set_reads_its_prompts_in_order(tmp_path):
    prompts = [Prompt(id=f"target-{n}", text=f"cat {n}", seed=n) for n in range(7)]
    folder = store.image_folder(tmp_path, "m")
    store.write_shard(folder, 0, [(p.digest(), picture(p.seed), "ok") for p in reversed(prompts)])
    batches = list(ImageSet(key="m", folder=folder, prompts=tuple(prompts)).batches(3))
    assert [len(b) for b in batches] == [3, 3, 1]
    assert [p for batch in batches for p, _, _ in batch] == prompts
    for prompt, image, _ in (row for batch in batches for row in batch):
        assert np.array_equal(np.asarray(image), np.asarray(picture(prompt.seed)))


def test_a_manifest_is_json_that_people_can_read(tmp_path):
    folder = store.step(tmp_path, "erase", "k1", lambda f: (f / "a").write_bytes(b"abc"), {"method": "uce"})
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["a"] == {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
