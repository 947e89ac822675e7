"""The picture of the report in README: a small grid of cells, its report, one page in the system's Chromium.

    python -m benchmarks.screenshot [docs/images/report.png]

Needs the extra ``browser`` and a Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

import erasebench
from erasebench.report import __main__ as report

COLOURS = 128  # of the picture's palette


def main(out: str = "docs/images/report.png") -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        for attack in ("none", "ringabell"):
            erasebench.run(method="esd_x", attack=attack, results=folder)
        report.main([f"results={folder}"])
        page = next(Path(folder, "report", "cells").glob("*ringabell.html"))
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 900, "height": 760})
            tab.goto(page.as_uri())
            tab.evaluate("document.querySelector('section[aria-label=\"Adversarial prompts\"]').scrollIntoView()")
            tab.wait_for_timeout(1000)
            with Image.open(io.BytesIO(tab.screenshot())) as shot:
                shot.convert("RGB").quantize(COLOURS).save(out, optimize=True)
            browser.close()
    print(f"written: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
