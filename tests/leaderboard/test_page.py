"""The page in a real browser, where there is one: Debian's chromium, or what CHROMIUM names."""

import json
import os
import re
import shutil

import pytest
from make.records import RECORDS, make_record

from probe.cli.main import main
from probe.leaderboard.page import render_page
from probe.leaderboard.sections import make_sections
from probe.records.record import write_record

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
# As root, and without the services that a browser calls home with.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def _data(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page).group(1))


def test_the_page_needs_no_network():
    page = render_page(RECORDS, make_sections(RECORDS))
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "@import" not in page
    assert "url(" not in page


def test_names_cannot_end_the_script_or_the_table():
    """Names of models are whatever a user's files are called."""
    record = make_record(model="</script><script>alert(1)</script>")
    page = render_page([record], make_sections([record]))
    assert "<script>alert" not in page
    assert _data(page)["records"][0]["model"] == record.model


def test_the_data_have_every_record_its_sweep_and_environment():
    data = _data(render_page(RECORDS, make_sections(RECORDS)))
    assert [record["model"] for record in data["records"]] == [record.model for record in RECORDS]
    swept = next(record for record in data["records"] if record["protocol"] == "clip-paper")
    assert swept["sweep"] == [[0.1, 0.5], [1.0, 0.9], [10.0, 0.8]]
    assert data["environments"][swept["environment"]]["torch"] == "2.15.0"
    assert len(data["pairs"]) == 1
    assert [theirs for _, theirs in data["published"]] == [0.951]


def test_tables_can_be_read_without_scripts():
    page = render_page(RECORDS, make_sections(RECORDS))
    body = page.split("<script id=")[0]
    for text in ("ViT-B/32", "failed", "95.00", "±1.50", "did not converge"):
        assert text in body


def test_no_records_make_a_page_that_says_so():
    assert "There are no records yet" in render_page([], [])


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no chromium here; install it, or name one in CHROMIUM")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    for record in RECORDS:
        write_record(record, results)
    assert main(["leaderboard", "--html", "--results-dir", str(results)]) == 0
    return results / "leaderboard.html"


@pytest.fixture
def page(request, browser, page_path):
    """Open the page in light or dark colours or on a phone; it writes nothing to the console and loads no URL."""
    look = getattr(request, "param", "light")
    size = {"width": 390, "height": 800} if look == "phone" else {"width": 1200, "height": 900}
    scheme = "dark" if look == "dark" else "light"
    context = browser.new_context(viewport=size, color_scheme=scheme, is_mobile=look == "phone")
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith("file:") else said.append(sent.url))
    page.goto(page_path.as_uri())
    yield page
    assert said == []
    context.close()


def _models(page):
    return page.locator(".board:visible tbody tr:visible th").all_inner_texts()


def _choose(page, protocol):
    page.select_option("#section", label=page.locator("#section option", has_text=protocol).first.inner_text())


@pytest.mark.browser
def test_columns_sort_both_ways_and_say_so(page):
    _choose(page, "readme")
    header = page.locator(".board:visible thead th").nth(1)
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert _models(page) == ["tiny", "ViT-B/32", "RN50"]  # 95, 90, and failed, which goes last
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert _models(page) == ["ViT-B/32", "tiny", "RN50"]
    assert "ascending" in page.locator("#found").inner_text()


@pytest.mark.browser
def test_sorting_moves_each_row_once(page):
    """Sorting at size takes as long as moving the rows does; benchmarks/rendering.py measures it."""
    script = """() => {
        const board = document.querySelector(".board:not([hidden])");
        const seen = new MutationObserver(() => {});
        seen.observe(board, { childList: true, subtree: true });
        board.querySelector("thead button").click();
        const added = seen.takeRecords().flatMap((one) => [...one.addedNodes]).filter((node) => node.tagName === "TR");
        return [added.length, board.querySelectorAll("tbody tr").length];
    }"""
    moved, num_rows = page.evaluate(script)
    assert 0 < moved <= num_rows


@pytest.mark.browser
def test_models_and_datasets_are_filtered_in_table_and_charts(page):
    _choose(page, "readme")
    page.get_by_label("Models with").fill("vit")
    assert _models(page) == ["ViT-B/32"]
    assert page.locator("#bars rect").count() == 1
    page.get_by_label("Datasets with").fill("cifar")
    assert page.locator(".board:visible thead th:visible").all_inner_texts()[-1].startswith("cifar10")
    assert page.locator("#found").inner_text() == "1 models, 1 datasets"


@pytest.mark.browser
def test_a_cell_opens_its_record_by_keyboard_and_closes_again(page):
    _choose(page, "readme")
    cell = page.get_by_role("button", name=re.compile("tiny on digits: 95.00"))
    cell.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="digits / tiny / eager / readme")
    assert dialog.is_visible()
    text = dialog.inner_text()
    assert "93.00 to 96.00 %" in text
    assert "python -m probe reproduce records/digits/tiny.eager.readme.fp32.json" in text
    assert dialog.get_by_role("link").get_attribute("href") == "records/digits/tiny.eager.readme.fp32.json"
    assert page.url.endswith("#records/digits/tiny.eager.readme.fp32.json")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert cell.evaluate("node => node === document.activeElement")


@pytest.mark.browser
def test_an_address_with_a_record_opens_it_over_its_section(browser, page_path):
    page = browser.new_page()
    page.goto(f"{page_path.as_uri()}#records/digits/tiny.jit.readme.fp32.json")
    assert page.get_by_role("dialog", name="digits / tiny / jit / readme").is_visible()
    page.keyboard.press("Escape")
    assert page.locator(".board:visible h2").inner_text().endswith("jit, fp32")
    page.close()


@pytest.mark.browser
def test_numbers_are_shown_as_they_are(browser, page_path):
    """Neither zeros of 100 nor exponents may be lost."""
    page = browser.new_page()
    page.goto(page_path.as_uri())
    values = [100, 320, 0.316, 1e-10, 3.2e-10, 1e6, 0, 0.042169]
    shown = page.evaluate("values => values.map(number)", values)
    assert [float(text) for text in shown] == pytest.approx(values, rel=5e-3)
    page.close()


@pytest.mark.browser
def test_every_chart_is_drawn_and_has_its_numbers_in_a_table(page):
    _choose(page, "clip-paper")
    page.select_option("#chosen", "cifar10")
    for name in ("bars", "cost", "sweep", "jit", "published"):
        figure = page.locator(f"#{name}")
        assert figure.get_by_role("img").get_attribute("aria-label")
        figure.get_by_text("The numbers").click()
        assert figure.locator("tbody tr").count() > 0
    assert page.locator("#sweep circle").count() == 3
    assert "chosen" in page.locator("#sweep tbody").inner_text()


@pytest.mark.browser
@pytest.mark.parametrize("page", ["light", "phone"], indirect=True)
def test_nothing_is_wider_than_the_screen(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_text_stands_out_from_its_ground(page):
    """WCAG's contrast of 4.5 for what is written, in the light and in the dark."""
    script = """() => {
        const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
        const level = (colour) => {
            const [r, g, b] = numbers(colour).map((v) => v / 255)
                .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const ground = (node) => {
            for (; node; node = node.parentElement) {
                const colour = getComputedStyle(node).backgroundColor;
                if (numbers(colour)[3] !== 0) return colour;
            }
            return "rgb(255, 255, 255)";
        };
        const contrast = (node) => {
            const both = [level(getComputedStyle(node).color), level(ground(node))].sort((x, y) => y - x);
            return (both[0] + 0.05) / (both[1] + 0.05);
        };
        const written = [...document.querySelectorAll("h1, h2, p, th, td, label, button, small, figcaption")];
        return Math.min(...written.filter((node) => node.innerText && node.checkVisibility()).map(contrast));
    }"""
    assert page.evaluate(script) >= 4.5
