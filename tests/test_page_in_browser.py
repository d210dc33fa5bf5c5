"""The page in a real headless browser: it opens from disk, the slider moves, a run can be switched off."""

from __future__ import annotations

import json
import shutil

import pytest
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from hf_warmup.report.page import write_page

from .recorded import recorded


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
    """Three runs: two seeds of an arm that stalls, one cut short."""
    folder = tmp_path_factory.mktemp("runs")
    stuck = {"growth": 10.0, "onset": 2, "loss": lambda t: 3.3, "steps": 60, "layers": 12, "learning_rate": 2e-3}
    runs = [recorded(folder / f"post-adamw-none-seed{seed}", **stuck) for seed in (0, 1)]
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
        return driver

    yield open_page
    assert driver.get_log("browser") == []


def in_page(driver, code):
    return json.loads(driver.execute_script(f"return JSON.stringify({code})"))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_follows_the_theme(opened, width, theme):
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


def test_a_theme_that_changes_is_followed(opened):
    driver = opened(1280, "light")
    color = "document.getElementById('curves')._fullLayout.font.color"
    before = in_page(driver, color)
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    WebDriverWait(driver, 5).until(lambda _: in_page(driver, color) != before)


def test_the_slider_moves_the_heat_map(opened):
    driver = opened()
    layers = driver.find_element(By.ID, "layers")
    driver.execute_script("arguments[0].scrollIntoView({block: 'end'})", layers)
    said = "document.querySelector('#layers .slider-label').textContent"
    value = "document.getElementById('layers').data[0].z[1][0]"  # of the first layer: 1 / t, as a power of ten
    assert in_page(driver, said) == "update 20"
    assert in_page(driver, value) == pytest.approx(-1.301)
    grip = driver.find_element(By.CSS_SELECTOR, "#layers .slider-grip-rect")
    end = driver.find_element(By.CSS_SELECTOR, "#layers .slider-rail-rect").rect
    way = int(end["x"] + end["width"] - grip.rect["x"] - grip.rect["width"] / 2)
    ActionChains(driver).drag_and_drop_by_offset(grip, way, 0).perform()
    WebDriverWait(driver, 5).until(lambda _: in_page(driver, said) == "update 60")
    assert in_page(driver, value) == pytest.approx(-1.778)
    assert in_page(driver, "document.getElementById('layers').data[0].z[1][2]") is None  # this run was cut short at 40


def short_repr(driver):
    """Visible lines of each run; `null` and absent are the same."""
    lines = in_page(driver, "document.getElementById('curves').data.map(d => [d.meta?.run, d.visible ?? true])")
    return {run: {visible for name, visible in lines if name == run} for run, _ in lines if run}


def test_a_run_is_switched_off_in_all_plots_at_once(opened):
    driver = opened()
    box = driver.find_element(By.CSS_SELECTOR, "input[data-run='post-adamw-none-seed1']")
    box.click()
    expected = {"post-adamw-none-seed0": {True}, "post-adamw-none-seed1": {False}, "pre-adamw-none-seed0": {True}}
    assert short_repr(driver) == expected
    box.click()
    assert short_repr(driver)["post-adamw-none-seed1"] == {True}


def test_the_legend_switches_an_arm_off(opened):
    driver = opened()
    entry = driver.find_element(By.CSS_SELECTOR, "#curves .legendtoggle")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", entry)
    entry.click()
    off = {"post-adamw-none-seed0": {"legendonly"}, "post-adamw-none-seed1": {"legendonly"}}
    WebDriverWait(driver, 5).until(lambda _: short_repr(driver) == {**off, "pre-adamw-none-seed0": {True}})


def test_the_menu_shows_another_run(opened):
    driver = opened()
    visible = "document.getElementById('run').data.map(d => d.visible)"
    assert in_page(driver, visible) == [True, False, False]
    Select(driver.find_element(By.ID, "which")).select_by_visible_text("pre-adamw-none-seed0")
    assert in_page(driver, visible) == [False, False, True]


def test_the_panels_keep_their_height_under_a_long_legend(opened, tmp_path):
    runs = [recorded(tmp_path / f"an-arm-with-a-long-name-number{i}", steps=30) for i in range(40)]
    path = write_page(runs, tmp_path / "report.html")
    panel = "document.getElementById('curves')._fullLayout.yaxis._length"
    for width in (1280, 390):
        driver = opened(width, page=path)
        WebDriverWait(driver, 5).until(lambda driver: 230 < in_page(driver, panel) < 240)
        box = "document.querySelector('#{}').getBoundingClientRect()"
        assert in_page(driver, f"{box.format('curves .legend')}.top >= {box.format('curves')}.top")
        assert in_page(driver, f"{box.format('curves')}.bottom < {box.format('layers')}.top")
    screen = {"width": 844, "height": 390, "deviceScaleFactor": 1, "mobile": True}  # the phone is turned
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    width = "document.getElementById('curves')._fullLayout.width"
    WebDriverWait(driver, 5).until(lambda driver: in_page(driver, width) > 800 and 230 < in_page(driver, panel) < 240)


def test_a_wide_table_scrolls_under_its_first_column(opened):
    driver = opened(390)
    left = "document.querySelector('#runs td').getBoundingClientRect().left"
    before = in_page(driver, left)
    driver.execute_script("document.getElementById('runs').parentElement.scrollLeft = 100")
    assert in_page(driver, "document.getElementById('runs').parentElement.scrollLeft") == 100
    assert in_page(driver, left) == before
    driver.find_elements(By.TAG_NAME, "summary")[-1].click()  # the rules, stacked: nothing to scroll to
    rules = "document.querySelector('.words').parentElement"
    assert in_page(driver, f"{rules}.scrollWidth == {rules}.clientWidth")
    assert in_page(driver, "document.getElementById('which').getBoundingClientRect().right") <= 390


def test_the_words_are_on_it(opened):
    driver = opened()
    words = driver.find_element(By.ID, "findings").text
    assert words.startswith("post-adamw-none: stalling, 2 of 2 runs. The gradient of encoder.layer.0 is")
    assert "The run is stalling." in words
    assert driver.find_element(By.ID, "arms").text.endswith("pre-adamw-none 0.0250 1.000 40 1")
    table = driver.find_element(By.ID, "runs").text
    assert "cut short, 40 of 60 updates" in table
    assert "learning_rate" in table
