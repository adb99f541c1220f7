"""The pages that `hear-jepa map --html` and `hear-jepa show --html` write, in a real browser. The map:

* it loads without an error and fetches nothing; a point shows its name; a click plays that point's file, whatever signs
  are in its name; with --embed-audio the page plays alone, in any folder;
* the ten neighbours are those of an independent computation, in order, and play too, by click and by key;
* search by name finds; zooming keeps what is under the pointer; colours and legend are the labels;
* a sound that is gone is said to be gone, by the command and by the page.

A recording: it loads without an error and fetches nothing; a click where the picture shows a sound plays that sound,
and the cursor is there in every panel.

Needs selenium, a Chromium or Chrome, and its chromedriver.
"""

import base64
import io
import shutil
from urllib.parse import unquote

import numpy
import pytest
import soundfile

from hear_jepa.cli import main
from hear_jepa.explore.map_page import excerpt
from hear_jepa.explore.points import Point
from hear_jepa.files.formats import load_embeddings
from hear_jepa.model.checkpoint import save_checkpoint

BROWSERS = ("chromium", "google-chrome", "chrome", "chromium-browser")
ODD = "hum 50% #1 <b>&amp;ü?.wav"
LABELS = {"hum": "</script>", "his": "hiss"}


@pytest.fixture(scope="module")
def browser():
    selenium = pytest.importorskip("selenium.webdriver", reason="the page's tests need selenium")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("the page's tests need Chromium or Chrome, and chromedriver")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    chrome.set_script_timeout(120)
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoint):
    """Twelve hums and twelve hisses, one of an odd name; a page that plays the files, one that holds them."""
    folder = tmp_path_factory.mktemp("map")
    generator = numpy.random.default_rng(0)
    for number in range(12):
        hum = numpy.sin(2 * numpy.pi * (150 + 20 * number) * numpy.arange(24000) / 16000)
        (folder / "sounds").mkdir(exist_ok=True)
        name = ODD if number == 1 else f"hum{number}.wav"
        soundfile.write(folder / "sounds" / name, 0.3 * hum, 16000)
        hiss = 0.05 * generator.normal(size=8000 + 1000 * number)
        soundfile.write(folder / "sounds" / f"hiss{number}.wav", hiss, 16000)
    rows = [f'"{path.name}",{LABELS[path.name[:3]]}' for path in sorted((folder / "sounds").iterdir())]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    save_checkpoint(folder / "small.safetensors", checkpoint)
    embeddings = str(folder / "e.npz")
    model = ["--model", str(folder / "small.safetensors")]
    assert main(["embed", str(folder / "sounds"), "--out", embeddings, *model]) == 0
    labels = ["--labels", str(folder / "labels.csv")]
    assert main(["map", embeddings, "--html", str(folder / "pages" / "map.html"), *labels]) == 0
    assert main(["map", embeddings, "--html", str(folder / "alone" / "map.html"), *labels, "--embed-audio"]) == 0
    return folder


@pytest.fixture
def page(browser, folder):
    browser.get((folder / "pages" / "map.html").as_uri())
    return browser


def point(browser, name):
    """The number of the point of a name, and where it is on the canvas, from its middle."""
    number = browser.execute_script("return data.names.findIndex(name => name.includes(arguments[0]))", name)
    place = browser.execute_script(
        "const box = canvas.getBoundingClientRect(), i = arguments[0];"
        "return [Math.round(screenX(i) - box.width / 2), Math.round(screenY(i) - box.height / 2)]",
        number,
    )
    return number, place


def point_at(browser, name):
    from selenium.webdriver.common.action_chains import ActionChains

    number, place = point(browser, name)
    canvas = browser.find_element("id", "map")
    ActionChains(browser, duration=0).move_to_element_with_offset(canvas, *place).perform()
    return number


def press(browser, keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(keys).perform()


def click(browser, name):
    from selenium.webdriver.common.action_chains import ActionChains

    number = point_at(browser, name)
    ActionChains(browser, duration=0).click().perform()
    return number


def hears(browser):
    """Wait for sound: its address, once some of it was played."""
    return browser.execute_async_script(
        "const done = arguments[0], started = performance.now();"
        "(function look() {"
        "  if (player.currentTime > 0.02) return done(player.src);"
        "  if (player.error || performance.now() - started > 8000) return done('silence: ' + player.src);"
        "  setTimeout(look, 20);"
        "})();"
    )


def test_it_loads_cleanly_and_alone(page, folder):
    assert page.title == "24 sounds, e.npz"
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert page.get_log("browser") == []
    legend = [item.text.split("\n") for item in page.find_elements("css selector", "#legend li")]
    assert legend == [["</script>", "12"], ["hiss", "12"]]


@pytest.mark.parametrize("name", ["hiss7.wav", ODD])
def test_a_point_shows_its_name_and_a_click_plays_its_file(page, name):
    number = point_at(page, name)
    assert page.execute_script("return hovered") == number
    assert page.find_element("id", "tip").text == f"{name} · {LABELS[name[:3]]}"
    click(page, name)
    assert unquote(hears(page)).endswith(f"/sounds/{name}")
    assert page.find_element("id", "chosen").text == name and page.get_log("browser") == []


def test_the_neighbours_are_right_and_play(page, folder):
    found = load_embeddings(folder / "e.npz")
    standard = numpy.asarray(found.embeddings, "f8")
    standard = (standard - standard.mean(0)) / standard.std(0)
    standard /= numpy.linalg.norm(standard, axis=1, keepdims=True)
    number = click(page, "hum5.wav")
    cosines = standard @ standard[number]
    expected = [i for i in numpy.argsort(-cosines, kind="stable") if i != number][:10]
    listed = page.find_elements("css selector", "#neighbours button")
    shown = [item.text.split("\n") for item in listed]
    assert [name for name, _ in shown] == [found.paths[i].rsplit("/", 1)[1] for i in expected]
    assert [float(cosine) for _, cosine in shown] == pytest.approx(cosines[expected].tolist(), abs=0.0051)

    listed[2].click()
    assert unquote(hears(page)).endswith(found.paths[expected[2]])
    press(page, "\ue015")  # down
    assert unquote(hears(page)).endswith(found.paths[expected[3]])
    press(page, "\ue013" * 9)  # up, to the point itself and no further
    assert hears(page).endswith("hum5.wav")


def test_search_finds_by_name(page):
    press(page, "/")
    press(page, "HISS1")
    assert page.find_element("id", "found").text == "3 found"  # 1, 10, 11
    names = []
    for _ in range(3):
        press(page, "\ue007")  # enter
        names.append(page.find_element("id", "chosen").text)
    assert sorted(names) == ["hiss1.wav", "hiss10.wav", "hiss11.wav"] and "hiss1" in hears(page)
    assert page.execute_script("return order.filter(shown).length") == 3
    press(page, "\ue00c")  # escape
    assert page.execute_script("return [matches, selected, player.paused]") == [None, None, True]


def test_zooming_keeps_what_is_under_the_pointer(page):
    number, before = point(page, "hum3.wav")
    page.execute_script(
        "canvas.dispatchEvent(new WheelEvent('wheel', {deltaY: -400, cancelable: true, clientX: screenX(arguments[0]),"
        "clientY: screenY(arguments[0])}))",
        number,
    )
    other = point(page, "hum4.wav")[1]
    assert numpy.abs(numpy.subtract(point(page, "hum3.wav")[1], before)).max() <= 1
    assert page.execute_script("return view.scale / fit().scale") == pytest.approx(numpy.exp(0.6))
    press(page, "0")
    assert page.execute_script("return view.scale / fit().scale") == 1 and other != point(page, "hum4.wav")[1]


def test_a_page_with_its_sounds_plays_anywhere(browser, folder, tmp_path):
    shutil.copy(folder / "alone" / "map.html", tmp_path / "moved.html")
    browser.get((tmp_path / "moved.html").as_uri())
    click(browser, "hiss3.wav")
    assert hears(browser).startswith("data:audio/ogg") and browser.get_log("browser") == []


def test_the_excerpt_is_the_loudest_part(tmp_path):
    audio = 1e-3 * numpy.ones(16000 * 12, "f4")
    audio[16000 * 7 : 16000 * 9] = 0.5 * numpy.sin(2 * numpy.pi * 400 * numpy.arange(32000) / 16000)
    soundfile.write(tmp_path / "a.wav", audio, 16000)
    sound, rate = soundfile.read(io.BytesIO(excerpt(Point(str(tmp_path / "a.wav"), 0, 0.0, 12.0))))
    sound = sound.reshape(-1, rate // 2)  # halves of a second
    assert len(sound) == 4 and sound.std(1).min() > 0.4
    quiet = excerpt(Point(str(tmp_path / "a.wav"), 0, 1.0, 3.0))
    assert len(quiet) < len(excerpt(Point(str(tmp_path / "a.wav"), 0, 6.0, 10.0)))
    assert excerpt(Point(str(tmp_path / "gone.wav"), 0, 0.0, 12.0)) is None


def test_what_is_gone_is_said(browser, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (folder / "sounds").rename(folder / "elsewhere")
    try:
        assert main(["map", str(folder / "e.npz"), "--html", str(tmp_path / "map.html")]) == 0
        assert "24 sounds are in archives, or not where" in capsys.readouterr().err
        browser.get((tmp_path / "map.html").as_uri())
        click(browser, "hum0.wav")
        assert hears(browser).startswith("silence")
        assert "Cannot play" in browser.find_element("id", "message").text
    finally:
        (folder / "elsewhere").rename(folder / "sounds")
    browser.get_log("browser")


def test_the_cursor_of_a_recording_is_where_the_sound_is(browser, folder, tmp_path):
    from matplotlib.image import imread
    from selenium.webdriver.common.action_chains import ActionChains

    audio = 1e-3 * numpy.random.default_rng(0).normal(size=16000 * 6)
    audio[40000:41600] += 0.5 * numpy.sin(numpy.arange(1600))  # at 2.5 s, a tenth of a second
    sound = tmp_path / "<b>ü #1?.wav"
    soundfile.write(sound, audio, 16000)
    model = ["--model", str(folder / "small.safetensors")]
    assert main(["show", str(sound), "--html", str(tmp_path / "page.html"), "--start", "1", *model]) == 0
    browser.get((tmp_path / "page.html").as_uri())
    assert browser.title == sound.name and browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0

    data = browser.execute_script("return data")
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(data["sound"])))
    assert numpy.abs(heard).argmax() / rate == pytest.approx(1.55, abs=0.06) and len(heard) / rate == pytest.approx(5)
    left, top, width, height = (value / 100 for value in data["panels"][0]["place"])
    pixels = imread(io.BytesIO(base64.b64decode(data["picture"])))[..., :3].sum(2)
    rows, columns = pixels.shape
    panel = pixels[round(top * rows) :, round(left * columns) :][: round(height * rows), : round(width * columns)]
    bright = panel[2:-2, 2:-2].mean(0)
    along = numpy.average(numpy.arange(len(bright)), weights=bright > 0.9 * bright.max()) / len(bright)

    box = browser.find_element("css selector", ".panel")
    browser.execute_script("arguments[0].addEventListener('click', () => { window.sought = player.currentTime; })", box)
    to = round((along - 0.5) * box.size["width"]), 0
    ActionChains(browser, duration=0).move_to_element_with_offset(box, *to).click().perform()
    assert hears(browser).startswith("data:audio/ogg")
    assert browser.execute_script("return window.sought") == pytest.approx(1.55, abs=0.06)
    browser.execute_script("player.pause(); player.currentTime = 3.5; follow()")
    upright = "lines.filter(line => line.upright).map(line => line.element.getBoundingClientRect().x)"
    lines = browser.execute_script(f"return {upright}")
    boxes = [browser.execute_script("return arguments[0].getBoundingClientRect()", line) for line in panels(browser)]
    for (start, end), line, box in zip(3 * [(1, 6)], lines, boxes, strict=True):
        assert (line - box["x"]) / box["width"] == pytest.approx((4.5 - start) / (end - start), abs=0.01)


def panels(browser):
    return browser.find_elements("css selector", ".panel")
