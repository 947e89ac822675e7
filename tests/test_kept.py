"""What is kept of results is found for the same bytes, code and arguments alone, and only if this account signed it."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest

from erasebench.report import codes, kept
from erasebench.store import inventory


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "LEAST", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    kept._secret.cache_clear()
    folder = tmp_path / "results" / "runs" / "m" / "seed0"
    folder.mkdir(parents=True)
    for name in kept.READ:
        (folder / name).write_text(name)
    yield tmp_path / "results"
    kept._secret.cache_clear()


def made(root, *arguments):
    """What is given, and whether it was made anew."""
    calls = []
    value = kept.once(root, "kind", arguments, lambda: calls.append(1) or {"texts": ["a", "\u00e9"], "n": 1.5})
    assert value == {"texts": ["a", "\u00e9"], "n": 1.5}
    return bool(calls)


def entries(root):
    return sorted((root / "cache" / "tables").glob("*"))


def test_it_is_made_once_for_the_same_bytes_and_arguments(root):
    assert made(root) and not made(root)
    assert made(root, "other") and not made(root, "other")
    for path in sorted(root.glob("runs/**/*.*")):
        path.write_text("changed")
        assert made(root) and not made(root)
    os.remove(root / "runs" / "m" / "seed0" / "budget.csv")
    assert made(root) and not made(root)


def test_other_code_makes_it_anew(root, monkeypatch):
    assert made(root)
    monkeypatch.setattr(kept, "_code", lambda: "other")
    assert made(root)


@pytest.mark.parametrize("place", [0, 70, -1])
def test_a_changed_byte_is_found(root, place):
    made(root)
    (path,) = entries(root)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert made(root) and not made(root)


@pytest.mark.parametrize("data", [b"", b"no lines", b"a\nb\nc", b"\n\n"])
def test_what_is_no_entry_is_made_anew(root, data):
    made(root)
    entries(root)[0].write_bytes(data)
    assert made(root) and not made(root)


def test_what_another_account_signed_is_made_anew(root, tmp_path, monkeypatch):
    made(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "stranger"))
    kept._secret.cache_clear()
    assert made(root) and not made(root)


def test_an_entry_under_another_name_is_made_anew(root):
    made(root)
    made(root, "other")
    one, two = entries(root)
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    assert made(root)


def test_nothing_is_kept_without_a_key_or_of_few_rows_and_the_value_is_the_same(root, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "LEAST", 10**9)
    assert made(root) and made(root) and not entries(root)
    monkeypatch.setattr(kept, "LEAST", 0)
    (tmp_path / "home").write_text("a file where the key's folder would be")
    assert made(root) and made(root) and not entries(root)


def test_a_run_that_ends_while_it_is_made_is_not_missed(root):
    late = root / "runs" / "m" / "seed1" / "run.json"

    def work():
        late.parent.mkdir()
        late.write_text("{}")
        return 1

    assert kept.once(root, "kind", [], work) == 1 and not entries(root)


def test_the_store_lists_it_and_prunes_what_a_day_did_not_ask_for(root):
    made(root)
    (entry,) = inventory.entries(root)
    assert (entry.step, entry.path) == ("tables", entries(root)[0]) and entry.bytes > 0
    assert not inventory.unused([entry], {})
    os.utime(entry.path, (1, 1))
    for partly in (False, True):
        assert inventory.unused(inventory.entries(root), {}, partly)
    made(root)  # asked for again
    assert not inventory.unused(inventory.entries(root), {})


def test_codes_go_by_the_order_of_the_columns_and_missing_values_come_first():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "a": pd.array(rng.choice(["x", "y", "\u00e9", None], 200), dtype="str"),
        "b": pd.array(rng.choice([1, 2**60, None], 200), dtype="Int64"),
        "c": rng.choice([0.5, -1.0], 200),
    })  # fmt: skip
    own = codes.codes(frame, ["a", "b", "c"])
    order = frame.sort_values(["a", "b", "c"], na_position="first", kind="stable").index
    assert (np.diff(own[order]) >= 0).all()
    assert len(set(own)) == len(frame.drop_duplicates())
    assert (codes.codes(codes.sorted_words(frame), ["a", "b", "c"]) == own).all()


def test_many_wide_columns_do_not_run_over():
    wide = [np.array([2**40, 0, 2**40]), np.array([1, 2**40, 0]), np.array([2**40, 5, 2**40])]
    assert np.argsort(codes.together(wide)).tolist() == [1, 2, 0]


def test_frames_with_other_words_are_joined_as_texts_are():
    parts = [pd.DataFrame({"w": pd.array(words, dtype="str")}) for words in (["b", None], ["c", "a", "b"])]
    both = codes.joined([codes.sorted_words(part) for part in parts])
    assert both.w.cat.categories.tolist() == ["a", "b", "c"]
    assert codes.plain(both).equals(pd.concat(parts, ignore_index=True))
