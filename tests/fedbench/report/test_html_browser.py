"""The page in a browser: it asks for nothing, follows what is selected, fits a phone, and gives files."""

import csv
import io
import re
import shutil
import xml.etree.ElementTree as ET

import pytest

from fedbench.report.html import write_report

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
METHODS = ["fedavg", "moon", "scaffold_100%", "ggeur"]
if BROWSER is None:
    pytest.skip("there is no chromium: apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def report(write, made_up, sweep, tmp_path):
    """Two settings, four methods, three seeds."""
    folder = write(*sweep(made_up(), METHODS, ["iid", "label_skew"], 3))
    write_report([folder], tmp_path / "page.html")
    return tmp_path / "page.html"


@pytest.fixture
def open_page(browser, report):
    """Open the report in a window; its errors and requests are kept in ``page.noted``."""
    contexts = []

    def opened(width=1200, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.noted = []
        page.on("console", lambda m: page.noted.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.noted.append(str(error)))
        page.on("request", lambda r: page.noted.append(r.url) if r.url.startswith("http") else None)
        page.goto(report.as_uri())
        drawn(page)
        return page

    yield opened
    for context in contexts:
        context.close()


def drawn(page):
    page.wait_for_selector("html[data-drawn]")


def downloaded(page, button):
    with page.expect_download() as waiting:
        button.click()
    return waiting.value.suggested_filename, waiting.value.path().read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_page_draws_everything_quietly_and_fits(open_page, width, scheme):
    page = open_page(width, color_scheme=scheme)
    assert page.noted == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    plots = page.locator(".plot")
    assert plots.count() == 1 + 2 * 4
    assert page.locator(".plot .main-svg").count() >= plots.count()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 400) == (scheme == "light")


@pytest.mark.slow
def test_tables_and_figures_follow_the_methods(open_page):
    page = open_page()
    table = page.locator('.table[data-name^="accuracy in %, last round"]').first
    winner = table.locator("td.best:nth-child(2)").locator("xpath=..")
    assert winner.get_attribute("data-method") == "3"
    curves = page.locator('[data-figure="s0-0-curves"] .plot')
    shown = "el => el.data.filter(t => t.visible === true && t.showlegend !== false).map(t => t.name)"
    assert curves.evaluate(shown) == METHODS
    page.get_by_label("ggeur", exact=True).uncheck()
    drawn(page)
    assert curves.evaluate(shown) == METHODS[:3]
    assert not table.locator('tr[data-method="3"]').is_visible()
    assert winner.get_attribute("data-method") == "2"
    heat = page.locator('[data-figure="s0-0-clients"] .plot').evaluate("el => el.data[0].y")
    assert heat == METHODS[2::-1]
    # The other way: a click on a legend's entry unticks a box.
    curves.locator(".legendtoggle").first.click()
    api.expect(page.locator("#methods input").first).not_to_be_checked()
    page.get_by_role("button", name="All", exact=True).click()
    drawn(page)
    assert curves.evaluate(shown) == METHODS
    assert page.noted == []


@pytest.mark.slow
def test_choices_change_what_is_shown(open_page):
    page = open_page()
    figure = page.locator('[data-figure="s0-0-curves"]')
    figure.get_by_label("against").select_option("MB")
    assert figure.locator(".plot").evaluate("el => el.layout.xaxis.title.text") == "MB"
    cost = page.get_by_label("target").first
    goal = page.locator("#s0-0 .choice", has=page.get_by_label("target")).locator(".note:visible")
    before = goal.inner_text()
    cost.select_option("80% of the best AVG")
    assert goal.inner_text() != before
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    drawn(page)
    page.reload()
    drawn(page)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.slow
def test_files_hold_what_is_shown(open_page):
    page = open_page(color_scheme="dark")
    page.get_by_label("moon", exact=True).uncheck()
    drawn(page)
    figure = page.locator('[data-figure="s0-0-curves"]')
    name, svg = downloaded(page, figure.get_by_role("button", name="SVG"))
    assert name == "digits-iid-learning-curves.svg"
    assert ET.fromstring(svg).tag.endswith("svg")
    assert "scaffold_100%" in svg
    assert "moon" not in svg
    assert "rgb(255, 255, 255)" in svg  # a paper is white
    _, text = downloaded(page, figure.get_by_role("button", name="CSV"))
    head, *rows = csv.reader(io.StringIO(text))
    assert head == ["method", "round", "mean", "std", "seeds"]
    assert len(rows) == 3 * 4
    page.locator('[data-figure="s0-0-curves"] summary').click()
    api.expect(figure.locator(".numbers tbody tr")).to_have_count(len(rows))

    table = page.locator('.table[data-name="accuracy in %, last round"]').first
    pick = table.get_by_role("combobox")
    download = table.get_by_role("button", name="download")
    name, tex = downloaded(page, download)
    assert name == "accuracy-in-last-round.tex"
    assert r"scaffold\_100\% &" in tex
    assert all(part in tex for part in (r"\toprule", r"\midrule", r"\bottomrule", r"$\pm$", r"\textbf{"))
    lines = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 4
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1
    pick.select_option("Markdown")
    _, markdown = downloaded(page, download)
    assert markdown.splitlines()[2].startswith("| fedavg |")
    pick.select_option("CSV")
    _, text = downloaded(page, download)
    head, *rows = csv.reader(io.StringIO(text))
    assert head[:3] == ["method", "d0", "d0 std"]
    assert [row[0] for row in rows] == ["fedavg", "scaffold_100%", "ggeur"]
    assert float(rows[0][1]) == pytest.approx(float(table.locator("td").first.get_attribute("data-v")))
    assert page.noted == []


@pytest.mark.slow
def test_copy_needs_no_permission(open_page):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    table = page.locator(".table").first
    table.get_by_role("button", name="copy").click()
    api.expect(page.locator("#status")).to_have_text("Copied as LaTeX")
    assert page.evaluate("navigator.clipboard.readText()").startswith("\\begin{table}")


@pytest.mark.slow
def test_print_is_light_and_without_controls(open_page):
    page = open_page(color_scheme="dark")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#methods").is_visible()
    assert not page.locator(".export").first.is_visible()
    assert page.noted == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_shuts_anyone_out(scheme, open_page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    page = open_page(color_scheme=scheme)
    found = axe.run(page).response
    assert len(found["passes"]) > 10
    assert [(v["id"], v["nodes"][0]["html"][:100]) for v in found["violations"]] == []
    # It can fail: a picture without a text.
    page.evaluate("document.querySelector('section').insertAdjacentHTML('beforeend', '<img src=x>')")
    assert "image-alt" in [v["id"] for v in axe.run(page).response["violations"]]
