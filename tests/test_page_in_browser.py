"""The page in a real headless browser: it opens from disk, fits any screen, and its controls work."""

from __future__ import annotations

import json
import shutil

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from hf_warmup.report.page import write_page

from .recorded import recorded, write_run


FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on the PATH"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Three runs: two seeds of a configuration whose loss rises, and an unfinished run."""
    folder = tmp_path_factory.mktemp("runs")
    rising = {"growth": 10.0, "steps": 60, "layers": 12, "learning_rate": 2e-3, "loss": lambda t: 1.1**t}
    runs = [recorded(folder / f"post-adamw-none-seed{seed}", **rising) for seed in (0, 1)]
    runs.append(recorded(folder / "pre-adamw-none-seed0", steps=40, planned=60, layers=12, learning_rate=1e-3))
    return write_page(runs, folder / "report.html", "Three runs")


@pytest.fixture
def opened(driver, page):
    """Open the page at a width, light or dark; nothing may appear on the console."""

    def open_page(width=1280, theme="light", page=page):
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        feature = {"name": "prefers-color-scheme", "value": theme}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        driver.get(page.as_uri())
        wait(driver, lambda: in_page(driver, "document.body.dataset.drawn ?? null") == "yes")
        return driver

    yield open_page
    assert driver.get_log("browser") == []


def in_page(driver, code):
    return json.loads(driver.execute_script(f"return JSON.stringify({code})"))


def wait(driver, condition, seconds=20):
    WebDriverWait(driver, seconds).until(lambda _: condition())


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 390])
def test_the_page_fits_and_follows_the_theme(opened, width, theme):
    driver = opened(width, theme)
    assert driver.title == "Three runs"
    assert in_page(driver, "performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:'))") == []
    assert in_page(driver, "document.documentElement.scrollWidth") == width  # nothing sticks out
    plots = in_page(driver, "[...document.querySelectorAll('.js-plotly-plot')].map(p => [p.id, p.clientWidth])")
    assert [name for name, _ in plots] == ["curves", "layers", "run"]
    assert all(0.85 * width < size <= width for _, size in plots)
    ink = in_page(driver, "document.getElementById('curves')._fullLayout.font.color")
    brightness = sum(int(ink[i : i + 2], 16) for i in (1, 3, 5)) / 3
    assert (brightness > 128) is (theme == "dark")
    # The first screen has the answer and the findings.
    assert in_page(driver, "document.getElementById('findings').getBoundingClientRect().top") < 900


def test_a_theme_that_changes_is_followed(opened):
    driver = opened(1280, "light")
    color = "document.getElementById('curves')._fullLayout.font.color"
    before = in_page(driver, color)
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    wait(driver, lambda: in_page(driver, color) != before)


def test_the_answer_and_the_findings_come_first(opened):
    driver = opened()
    assert driver.find_element(By.ID, "answer").text == (
        "3 runs of 2 configurations. Best eval_loss: 1.000 ± 0.000 with post-adamw-none; next 1.000 with "
        "pre-adamw-none. Problems in 2 runs: post-adamw-none (2 of 2)."
    )
    findings = driver.find_element(By.ID, "findings").text
    assert findings.startswith("✖post-adamw-none (2 of 2 runs): loss rises: The training loss rises")
    table = driver.find_element(By.ID, "configurations").text
    assert "✖ 2 with a problem" in table
    assert "unfinished" in table


def test_the_slider_moves_the_heat_map(opened):
    driver = opened()
    value = "document.getElementById('layers').data[0].z[1][0]"  # of the first layer: 1 / t, as a power of ten
    assert driver.find_element(By.ID, "at").text == "20"
    assert in_page(driver, value) == pytest.approx(-1.3)
    driver.find_element(By.ID, "update").send_keys(Keys.END)
    wait(driver, lambda: in_page(driver, value) == pytest.approx(-1.78))
    assert driver.find_element(By.ID, "at").text == "60"
    assert in_page(driver, "document.getElementById('layers').data[0].z[1][2]") is None  # this run ended at 40


def visible(driver):
    """The visible traces of each configuration: of single runs, and of means and bands."""
    code = "document.getElementById('curves').data.map(d => [d.meta.configuration, d.meta.single, d.visible ?? true])"
    return {(each, single) for each, single, shown in in_page(driver, code) if shown}


def test_single_runs_are_shown_on_demand(opened):
    driver = opened()
    assert visible(driver) == {(0, False), (1, False)}
    driver.find_element(By.ID, "singles").click()
    wait(driver, lambda: visible(driver) == {(0, False), (0, True), (1, False)})


def test_a_configuration_is_switched_off_with_its_labels(opened):
    driver = opened()
    labels = "document.getElementById('curves').layout.annotations.filter(a => a.name && a.visible).map(a => a.text)"
    assert set(in_page(driver, labels)) == {"post-adamw-none", "pre-adamw-none"}
    driver.find_element(By.CSS_SELECTOR, "input[data-configuration='0']").click()
    wait(driver, lambda: visible(driver) == {(1, False)})
    assert set(in_page(driver, labels)) == {"pre-adamw-none"}


def test_labels_at_the_lines_give_way_on_a_phone(opened):
    driver = opened(390)
    assert in_page(driver, "document.getElementById('curves').layout.margin.r") < 20
    assert in_page(driver, "document.getElementById('curves')._fullLayout.xaxis._length") > 250


def test_the_menu_shows_another_run(opened):
    driver = opened()
    shown = "document.getElementById('run').data.map(d => d.visible)"
    assert in_page(driver, shown) == [True, False, False]
    Select(driver.find_element(By.ID, "which")).select_by_visible_text("pre-adamw-none-seed0")
    wait(driver, lambda: in_page(driver, shown) == [False, False, True])


def test_a_wide_table_scrolls_under_its_first_column(opened):
    driver = opened(390)
    left = "document.querySelector('#configurations td').getBoundingClientRect().left"
    before = in_page(driver, left)
    scrolled = "document.getElementById('configurations').parentElement.scrollLeft"
    driver.execute_script(f"{scrolled} = 100")
    assert in_page(driver, scrolled) == 100
    assert in_page(driver, left) == before
    driver.find_elements(By.TAG_NAME, "summary")[-1].click()  # the rules, stacked: nothing to scroll to
    rules = "document.querySelector('table.words').parentElement"
    assert in_page(driver, f"{rules}.scrollWidth == {rules}.clientWidth")


def test_hostile_names_stay_text(opened, tmp_path):
    names = ["<img src=x onerror=document.title=1>", "<a href='http:127.0.0.1:9'>x<", "<span style=fill:url(http:x)>s"]
    for name in names:
        write_run(tmp_path / name, learning_rate=name)
        path = tmp_path / name / "gradient_norms.jsonl"
        path.write_text(path.read_text().replace("embeddings", name))
    driver = opened(page=write_page(tmp_path, tmp_path / "report.html", names[0]))
    assert driver.title == names[0]
    assert in_page(driver, "document.querySelectorAll('img, a').length") == 0
    assert in_page(driver, "performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:'))") == []
    ticks = in_page(driver, "[...document.querySelectorAll('#layers .ytick')].map(t => t.textContent)")
    assert set(names) <= set(ticks)
    options = [option.text for option in Select(driver.find_element(By.ID, "which")).options]
    assert set(options) == set(names)
