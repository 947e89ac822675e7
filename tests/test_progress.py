"""Progress where there is no terminal: a line at each step's end, and one now and then while something takes long."""

import time

import pytest

from erasebench import progress


def test_a_step_has_a_line_at_its_end_and_a_long_one_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.05)
    with progress.labelled("cell 2 of 3: "), progress.step("attack", record := {}):
        with progress.bar(total=4, desc="search", unit="query", initial=1) as bar:
            bar.update()
            bar.set_postfix(loss=0.123456)
            time.sleep(0.3)
        record["cached"] = True
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("cell 2 of 3: attack: search 2 of 4 queries, ") and " left, loss=0.123, " in first
    assert last.startswith("cell 2 of 3: attack: ") and last.endswith(" (stored)")


def test_what_counts_nothing_is_told_too_and_a_failed_step_has_no_end(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.05)
    with pytest.raises(ValueError), progress.step("erase"):
        time.sleep(0.2)
        raise ValueError
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("erase: ") and line.endswith(" so far") for line in lines)


def test_on_a_terminal_the_same_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress, "terminal", lambda: True)
    with progress.step("draw"), progress.bar(total=2, desc="draw", unit="image") as bar:
        bar.n = 2
        bar.refresh()
    with progress.bar(total=0, desc="nothing") as bar:
        bar.update()
    said = capsys.readouterr().err
    assert "2/2" in said and "nothing" not in said and "draw: " in said
