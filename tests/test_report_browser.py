"""The report in a real browser: Chromium of the system, driven by Playwright; skipped where there is none."""

from __future__ import annotations

import shutil

import pytest

from erasebench.report import __main__ as report
from tests.small import report_runs
from tests.test_hostile_results import poison

playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
LOADED = "() => [...document.querySelectorAll('.tile img')].every(e => e.complete && e.naturalWidth === 64)"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = report_runs(tmp_path_factory.mktemp("browser") / "results")
    assert report.main([f"results={root}"]) == 0
    return root


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        one = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def page(browser, request):
    """A page that must log no error and ask nobody for anything."""
    context = browser.new_context(**getattr(request, "param", {}))
    one, told = context.new_page(), []
    one.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
    one.on("pageerror", lambda error: told.append(str(error)))
    one.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else told.append(asked.url))
    yield one
    context.close()
    assert told == []


def address(results, kind, *words):
    return next(p for p in (results / "report" / kind).iterdir() if p.name[5:].startswith("-".join(words))).as_uri()


def first_column(page, table):
    return page.eval_on_selector_all(
        f"#{table} tbody tr:not([hidden]) td:first-child", "all => all.map(e => e.textContent)"
    )


def test_tables_sort_by_click_and_by_key_and_filter(results, page):
    page.goto((results / "report" / "index.html").as_uri())
    assert first_column(page, "cells") == ["1", "2", "3", "4"]
    page.click("#cells th:nth-child(1)")
    page.wait_for_function("() => document.querySelector('#cells td').textContent === '4'")
    head = page.locator("#cells th:nth-child(1)")
    head.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#cells td').textContent === '1'")
    assert head.get_attribute("aria-sort") == "ascending"
    page.fill("input[data-filters=cells]", "gun uce")
    assert len(first_column(page, "cells")) == 1
    page.fill("input[data-filters=cells]", "nothing like it")
    assert first_column(page, "cells") == []


def test_images_load_changed_verdicts_are_found_and_a_key_opens_one(results, page):
    page.goto(address(results, "cells", "cat", "uce", "reseed"))
    page.wait_for_selector(".tile img")
    page.eval_on_selector_all(".tile img", "all => all.forEach(e => { e.loading = 'eager'; })")
    page.wait_for_function(LOADED)
    rows = page.locator(".row:not([hidden])")
    whole = rows.count()
    page.check("#changed")
    assert 0 < rows.count() < whole and f"{rows.count()} of {whole}" in page.inner_text("#shown")
    page.uncheck("#changed")
    page.select_option("#group", "attack")
    assert rows.count() == 4 and rows.first.locator(".tile").count() == 4
    rows.first.locator(".tile").first.focus()
    page.keyboard.press("Enter")
    assert "emoji_classifier" in page.inner_text("dialog")
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog")


def test_unsafe_images_stay_veiled_until_each_is_pressed(results, page):
    page.goto(address(results, "cells", "gun", "uce", "none"))
    tiles = page.locator(".tile")
    assert tiles.count() > 4
    sources = page.eval_on_selector_all(".tile img", "all => all.map(e => e.getAttribute('src'))")
    assert sources and all(one.endswith(".veil.png") for one in sources)
    tiles.first.click()
    after = page.eval_on_selector_all(".tile img", "all => all.map(e => e.getAttribute('src'))")
    assert not after[0].endswith(".veil.png") and after[1:] == sources[1:] and not page.is_visible("dialog")
    tiles.nth(1).focus()
    page.keyboard.press("Tab")
    assert page.eval_on_selector_all(".tile img", "all => all.map(e => e.getAttribute('src'))") == after
    tiles.first.click()
    assert page.is_visible("dialog")


def test_a_script_in_any_label_is_text(results, page, tmp_path):
    root = tmp_path / "results"
    shutil.copytree(results, root, ignore=shutil.ignore_patterns("report"))
    poison(root, "<script>window.ran=1</script><img src=x onerror='window.ran=1'>\"'", labels=True)
    assert report.main([f"results={root}"]) == 0
    for one in (root / "report").rglob("*.html"):
        page.goto(one.as_uri())
        assert page.evaluate("window.ran") is None
        assert page.locator("img[onerror]").count() == 0


PHONE, DARK = {"viewport": {"width": 390, "height": 800}}, {"color_scheme": "dark"}


@pytest.mark.parametrize("page", [{}, DARK | PHONE], indirect=True, ids=["light", "dark phone"])
def test_contrast_and_names_pass_axe_and_nothing_runs_off_the_page(results, browser, page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    cells = [address(results, "cells", *words) for words in (("cat", "uce", "reseed"), ("gun", "uce", "none"))]
    sites = [(results / "report" / "index.html").as_uri(), address(results, "models", "cat", "uce"), *cells]
    for site in sites:
        page.goto(site)
        found = axe.run(page, options={"preload": False, "runOnly": ["wcag2a", "wcag2aa"]}).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_decision_summary_prints(results, page, tmp_path):
    page.goto(address(results, "models", "cat", "uce"))
    assert page.pdf(path=tmp_path / "one.pdf").startswith(b"%PDF")
