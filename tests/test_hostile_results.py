"""A results folder whose every text was replaced: nothing runs, nothing is written outside, nothing is a formula."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erasebench import cache, compare, export, found, leaderboard, paper
from erasebench.command.launch import launch
from erasebench.report import __main__ as report
from erasebench.report import layouts, runs, tables
from erasebench.store.files import file_hash
from tests.small import SMALL, small_run

CANARY = "canary_of_a_results_folder"
HOSTILE = {
    "a class": "os.system", "a module": f"{CANARY}.Guide", "a way up": "../../../../../escaped", "a root": "/escaped",
    "a formula": '=HYPERLINK("http://evil","x")', "a script": "<script>alert(1)</script>|`",
    "a link": "![x](http://evil)](y)", "an interpolation": "${oc.env:HOME}", "control": "\x1b[31mred\r\n\x00\x07end",
    "a package": f"pkg:{CANARY}.inner/x", "long": "x" * 100_000,
}  # fmt: skip
LABELS = ("names", "flags", "judge", "packages", "hardware", "environment")
COLUMNS = ("method", "recipe", "budget", "settings", "concept", "model", "attack", "metric", "label", "head", "unit")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "results"
    small_run(folder, "method=uce")
    small_run(folder, "method=negative_prompt", "attack=reseed", "attack.queries=2")
    return folder


def replaced(value, text, only=None):
    """The value with every text of it replaced; ``only``: below these keys."""
    if isinstance(value, dict):
        return {k: replaced(v, text, None if only is None or k in only else only) for k, v in value.items()}
    if isinstance(value, list):
        return [replaced(v, text, only) for v in value]
    return text if isinstance(value, str) and only is None else value


def poison(root: Path, text: str, labels: bool) -> None:
    """Replace texts everywhere, and make checksums and manifests right again."""
    for path in [*root.glob("cache/*/*/*.json")]:
        if path.name != "manifest.json" and not labels:
            path.write_text(json.dumps(replaced(json.loads(path.read_text()), text)))
    for path in root.glob("cache/*/*/manifest.json"):
        known = json.loads(path.read_text())
        for name, said in known["files"].items():
            file = path.parent / name
            said |= {"bytes": file.stat().st_size, "sha256": file_hash(file)}
        path.write_text(json.dumps(known))
    for path in root.glob("runs/**/run.json"):
        record = replaced(runs.opened(path.read_text()), text, LABELS if labels else None)
        columns = COLUMNS if labels else None
        table = pq.read_table(path.parent / "scores.parquet", partitioning=None)
        for i, name in enumerate(table.column_names):
            if pa.types.is_string(table.schema.field(i).type) and (columns is None or name in columns):
                table = table.set_column(i, table.schema.field(i), pa.array([text] * len(table), pa.string()))
        pq.write_table(table, path.parent / "scores.parquet")
        for file in path.parent.glob("*.csv"):
            frame = pd.read_csv(file, dtype=str, keep_default_na=False)
            for name in frame.columns:
                if columns is None or name in columns:
                    frame[name] = text
            tables.write_csv(file, frame)
        record["files"] = {p.name: file_hash(p) for p in path.parent.iterdir() if p.name != "run.json"}
        del record["checksum"]  # which is made anew
        path.write_text(runs.sealed(record))


def snapshot(folder: Path) -> dict[str, float]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def commands(results: Path, out: Path):
    run = str(next(results.glob("runs/**/run.json")).parent)
    yield "leaderboard", lambda: leaderboard.main([f"results={results}"])
    yield "report", lambda: report.main([f"results={results}", f"out={out}/report"])
    for table in (*paper.TABLES, *layouts.shipped()):
        yield (
            f"paper {table}",
            lambda table=table: paper.main([f"table={table}", f"results={results}", f"out={out}/b.png"]),
        )
    yield "compare", lambda: compare.main([f"results={results}", f"out={out}/compare.png"])
    for folder in results.glob("runs/**/run.json"):
        yield "found", lambda folder=folder: found.main([f"run={folder.parent}", f"file={out}/found.csv", "texts=true"])
    yield "export", lambda: export.main([f"run={run}", f"out={out}/model"])
    yield "cache", lambda: cache.main([f"results={results}"])
    yield "cache --check", lambda: cache.main([f"results={results}", "--check"])
    yield "cache --prune", lambda: cache.main([f"results={results}", "--prune", "--yes"])
    yield "rerun", lambda: launch([*SMALL, "method=uce", f"results={results}"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        *((kind, False) for kind in ("a class", "a module", "a way up", "an interpolation", "control", "a package")),
        *((kind, True) for kind in ("a formula", "a script", "a link", "a root", "control", "long")),
    ],
)
def test_it_is_data(shared, tmp_path, monkeypatch, kind, labels):
    """Every text of the folder replaced, or those that reach tables as labels."""
    world = tmp_path / "world"
    results, out, home = world / "a" / "b" / "results", tmp_path / "out", world / "home"
    shutil.copytree(shared, results)
    for folder in (out, home, world / "modules" / CANARY):
        folder.mkdir(parents=True)
    (world / "modules" / CANARY / "__init__.py").write_text(f"open({str(world / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(world / "modules")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(world)
    poison(results, HOSTILE[kind], labels)
    before = snapshot(world)
    for name, command in commands(results, out):
        said, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            code = command()
        lines = said.getvalue() + errors.getvalue()
        assert code in (0, 1, 2) and "Traceback" not in lines, f"{name}: {errors.getvalue()[-3000:]}"
        assert "a fault of erasebench" not in lines, f"{name}: {errors.getvalue()[-3000:]}"
        assert not re.search(r"[\x00\x07\x1b]", lines), f"{name}: control characters on the terminal"
    assert CANARY not in sys.modules and not (world / "ran").exists()
    changed = {path for path, time in snapshot(world).items() if before.get(path) != time}
    assert not [path for path in changed if not path.startswith(str(results))]
    assert not os.path.exists("/escaped")
    for path in [*results.rglob("*.md"), *out.rglob("*.md")]:
        assert not re.search(r"<script|\]\(http|!\[", path.read_text()), path
    for path in [*results.rglob("*.csv"), *out.rglob("*.csv")]:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        texts = [*frame.columns, *frame.to_numpy().ravel()]
        assert not [t for t in texts if re.match(r"[=+@\t\r]|-(?![\d.]|inf)", t)], path
