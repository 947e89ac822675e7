"""Every seed comes from one function, and is the number it always was: results stored before stay comparable."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from attacks import denoising
from erasebench.prompts.files import place_hash
from erasebench.types import seed_of
from methods import fine_tuning


def test_seeds_are_what_they_were():
    assert (place_hash(0, "target", 3), place_hash(77, "coco", "cat")) == (1887119809, 524592940)
    assert denoising.generator(2, 5, "start").initial_seed() == 13271855633101710
    assert denoising.generator(0, 7, 1, 3).initial_seed() == 34931217141901235
    assert fine_tuning.generator(0, "noise", 1).initial_seed() == 11042883651082458


@given(st.lists(st.one_of(st.integers(), st.text(max_size=5)), min_size=1, max_size=4))
def test_a_seed_is_the_head_of_a_sha256(parts):
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    assert seed_of(*parts) == int(digest.hex()[:16], 16) < 2**64
