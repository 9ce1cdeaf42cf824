"""The page, in a real browser: every action, by what the canvas shows, the captions and the files that come out."""

import os
import re
import shutil
import time
from contextlib import contextmanager
from io import BytesIO
from urllib.parse import urlsplit

import numpy
import pytest
from PIL import Image, ImageDraw
from support import colours, packages
from support.service import running

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
expect = playwright.expect
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium fonts-dejavu-core"),
]

# The photo is 280 x 280 pixels: cells of 40 x 40, one of them red and one blue.
CELL, SIDE = 40, 280
RED, BLUE = (4, 1), (1, 5)  # (row, column)


def photo(size=(SIDE, SIDE), shift=(0, 0)):
    picture = Image.new("RGB", size)
    draw = ImageDraw.Draw(picture)
    for (row, column), colour, extent in ((RED, "red", 1), (BLUE, "blue", 0.8)):
        left, top = shift[0] + CELL * column, shift[1] + CELL * row
        draw.rectangle((left, top, left + CELL * extent - 1, top + CELL - 1), colour)
    return picture


def saved(picture, path, **options):
    picture.save(path, **options)
    return path


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with running(folder, model="support.colours:model", names=tuple(colours.COLOURS)) as served:
        yield served


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"]
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser, service, *, faults=(), **options):
    """The page of a service; at the end its console must be without errors, and every request to the service."""
    context = browser.new_context(viewport={"width": 1100, "height": 800}, **options)
    page = context.new_page()
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else 0)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.requests = requests
    page.goto(service.address)
    expect(page.locator("#model option, #error:not(:empty)").first).to_be_attached()
    yield page
    context.close()
    assert [text for text in complaints if not any(fault in text for fault in faults)] == []
    hosts = {urlsplit(url).netloc for url in requests if not url.startswith(("blob:", "data:"))}
    assert hosts == {urlsplit(service.address).netloc}


@pytest.fixture
def page(browser, service):
    with opened(browser, service) as page:
        yield page


@pytest.fixture
def explained(page, tmp_path):
    """The page after the photo was chosen."""
    choose(page, saved(photo(), tmp_path / "two squares.png"))
    return page


def choose(page, path):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="choose a file").click()
    chooser.value.set_files(path)
    wait(page)


def wait(page):
    expect(page.get_by_role("status")).to_have_text(re.compile("^Most probable"))


def pixels(page, panel="a"):
    """What a canvas shows, (H,W,3)."""
    width, height, levels = page.evaluate(
        """(selector) => {
            const canvas = document.querySelector(selector);
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [canvas.width, canvas.height, Array.from(data)];
        }""",
        f"#panel-{panel} canvas",
    )
    return numpy.array(levels, numpy.uint8).reshape(height, width, 4)[..., :3].astype(int)


def plain(page):
    """Show the heatmap alone, in gray: a pixel's level is its value."""
    page.get_by_label("Colours").select_option("gray")
    set_opacity(page, 100)


def set_opacity(page, percent):
    page.get_by_label("Opacity").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", percent
    )


def at(picture, cell):
    """The mean level in the middle of a cell."""
    row, column = (CELL * place + CELL // 2 for place in cell)
    return picture[row - 2 : row + 3, column - 2 : column + 3].mean()


def is_hot_only_at(picture, cell):
    others = {RED, BLUE} - {cell}
    return at(picture, cell) > 240 and all(at(picture, other) < 60 for other in others) and picture[:20].mean() < 20


def caption(page, panel="a"):
    return page.locator(f"#panel-{panel} figcaption").inner_text()


def class_button(page, name):
    return page.locator("#classes button", has_text=name)


def explanations(page):
    return [url for url in page.requests if ":explain" in url]


def test_a_chosen_photo_is_explained_and_the_hot_spot_lies_on_the_square(explained):
    labels = explained.locator("#classes button").all_inner_texts()
    assert len(labels) == 5 and labels[0].startswith("red")
    shares = [float(label.split()[-2]) for label in labels]
    assert shares == sorted(shares, reverse=True) and 50 < sum(shares) <= 100.3
    assert caption(explained) == f"red, {shares[0]} %"
    assert explained.get_by_role("status").inner_text() == f"Most probable: red, {shares[0]} %"
    warm = pixels(explained)[CELL * RED[0] + 20, CELL * RED[1] + 20]
    assert warm[0] > 150 and warm[2] < 80  # the photo's red under the hot end of jet
    plain(explained)
    assert is_hot_only_at(pixels(explained), RED)


def test_a_click_on_a_class_shows_its_heatmap_without_a_request(explained):
    plain(explained)
    before = len(explained.requests)
    class_button(explained, "blue").click()
    assert is_hot_only_at(pixels(explained), BLUE)
    assert caption(explained).startswith("blue, ")
    assert class_button(explained, "blue").get_attribute("aria-pressed") == "true"
    assert class_button(explained, "red").get_attribute("aria-pressed") == "false"
    assert explained.requests[before:] == []


def transfer(page, path, event, target="document"):
    """Hands a file to the page as a drop or a paste does."""
    data = list(path.read_bytes())
    page.evaluate(
        """([data, event, target]) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(data)], "given.png", { type: "image/png" }));
            const at = target === "document" ? document : document.querySelector(target);
            const options = { bubbles: true, cancelable: true };
            at.dispatchEvent(event === "paste"
                ? new ClipboardEvent("paste", { ...options, clipboardData: files })
                : new DragEvent(event, { ...options, dataTransfer: files }));
        }""",
        [data, event, target],
    )


def test_a_photo_that_comes_before_the_model_is_known_waits_for_it(browser, service, tmp_path):
    def later(route):
        time.sleep(0.5)
        route.continue_()

    with opened(browser, service) as page:
        page.route("**/classes", later)
        page.reload()
        choose(page, saved(photo(), tmp_path / "a.png"))
        plain(page)
        assert is_hot_only_at(pixels(page), RED)


def test_a_photo_is_dropped(page, tmp_path):
    path = saved(photo(), tmp_path / "a.png")
    transfer(page, path, "dragover", "#drop")
    assert "over" in page.locator("#drop").get_attribute("class")
    transfer(page, path, "drop", "#drop")
    wait(page)
    assert "over" not in page.locator("#drop").get_attribute("class")
    plain(page)
    assert is_hot_only_at(pixels(page), RED)


def test_a_photo_is_pasted(page, tmp_path):
    transfer(page, saved(photo(), tmp_path / "a.png"), "paste")
    wait(page)
    plain(page)
    assert is_hot_only_at(pixels(page), RED)


def test_opacity_goes_from_the_photo_alone_to_the_map_alone(explained):
    original = numpy.asarray(photo()).astype(int)
    set_opacity(explained, 0)
    assert abs(pixels(explained) - original).max() <= 1
    explained.get_by_label("Colours").select_option("gray")
    set_opacity(explained, 50)
    half = pixels(explained)
    set_opacity(explained, 100)
    assert abs(half - (original + pixels(explained)) / 2).max() <= 2
    assert explained.locator("#opacity-value").inner_text() == "100 %"


@pytest.mark.parametrize(
    ("colormap", "cold", "hot"),
    [("jet", (0, 0, 127), (127, 0, 0)), ("viridis", (68, 1, 84), (253, 231, 37)), ("gray", (0, 0, 0), (255,) * 3)],
)
def test_a_colormap_has_its_own_ends(explained, colormap, cold, hot):
    explained.get_by_label("Colours").select_option(colormap)
    set_opacity(explained, 100)
    picture = pixels(explained)
    assert abs(picture[0, -1] - cold).max() <= 1
    hottest = picture[CELL * RED[0] + 20, CELL * RED[1] + 20]
    assert abs(hottest - hot).max() <= 16


def test_the_enlarged_map_is_the_one_that_the_service_draws(explained, service, tmp_path):
    import httpx

    plain(explained)
    answer = httpx.post(
        service.url("/v1/models/red-or-blue:explain?colormap=gray&alpha=1"),
        content=saved(photo(), tmp_path / "a.png").read_bytes(),
        headers={"content-type": "image/png", "accept": "image/png"},
    )
    drawn = numpy.asarray(Image.open(BytesIO(answer.content))).astype(int)
    assert abs(pixels(explained) - drawn).max() <= 3


def test_a_layer_is_chosen_and_its_map_is_finer(explained):
    options = explained.get_by_label("Layer").locator("option").all_inner_texts()
    assert options == ["0, 14x14", "1, 7x7 (found)"]
    plain(explained)
    coarse = pixels(explained)
    explained.get_by_label("Layer").select_option("0, 14x14")
    wait(explained)
    fine = pixels(explained)
    assert "layer=0" in explanations(explained)[-1]
    # Of 14 x 14 cells, the edge of the square is twice as steep.
    row, edge = CELL * RED[0] + 20, CELL * (RED[1] + 1)
    steep = [abs(numpy.diff(picture[row, edge - 20 : edge + 20, 0])).max() for picture in (coarse, fine)]
    assert steep[1] > 1.5 * steep[0]
    assert at(fine, RED) > 240


def test_a_method_is_chosen(explained):
    assert explained.get_by_label("Method").locator("option").all_inner_texts()[:2] == ["gradcam", "gradcam++"]
    explained.get_by_label("Method").select_option("layercam")
    wait(explained)
    assert "method=layercam" in explanations(explained)[-1]
    plain(explained)
    assert is_hot_only_at(pixels(explained), RED)


def test_two_classes_are_compared_side_by_side(explained):
    explained.get_by_label("Compare two classes side by side").check()
    assert explained.locator("#compare-hint").is_visible() and not explained.locator("#panel-b").is_visible()
    class_button(explained, "blue").click()
    plain(explained)
    assert is_hot_only_at(pixels(explained, "a"), RED) and is_hot_only_at(pixels(explained, "b"), BLUE)
    assert caption(explained, "a").startswith("red") and caption(explained, "b").startswith("blue")
    left, right = (explained.locator(f"#panel-{panel}").bounding_box() for panel in "ab")
    assert right["x"] >= left["x"] + left["width"] and abs(right["y"] - left["y"]) < 1
    explained.get_by_label("Compare two classes side by side").uncheck()
    assert not explained.locator("#panel-b").is_visible()


def test_any_class_is_explained_by_name(explained):
    assert "cyan" not in "".join(explained.locator("#classes button").all_inner_texts())
    assert explained.locator("#class-names option").count() == 7
    explained.get_by_label("Another class").fill("Cyan")
    explained.get_by_role("button", name="Explain").click()
    expect(explained.get_by_role("status")).to_have_text("Explained cyan")
    assert caption(explained).startswith("cyan, ")
    plain(explained)
    assert is_hot_only_at(pixels(explained), BLUE)


def test_a_class_that_is_not_there_is_told_in_the_services_sentence(browser, service, tmp_path):
    with opened(browser, service, faults=["422"]) as page:
        choose(page, saved(photo(), tmp_path / "a.png"))
        page.get_by_label("Another class").fill("gren")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("target: no class is named 'gren'; did you mean green (1)?")
        class_button(page, "blue").click()
        assert caption(page).startswith("blue")


def test_the_picture_is_downloaded_as_it_is_shown(explained):
    plain(explained)
    with explained.expect_download() as download:
        explained.get_by_role("button", name="Download PNG").click()
    assert download.value.suggested_filename == "two squares-gradcam-0.png"
    picture = numpy.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    assert (picture == pixels(explained)).all()


def test_a_photo_with_an_orientation_is_shown_upright_with_the_map_on_the_square(page, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees to the right
    lying = photo().transpose(Image.Transpose.ROTATE_90)
    choose(page, saved(lying, tmp_path / "a.jpg", exif=exif, quality=95))
    plain(page)
    assert is_hot_only_at(pixels(page), RED)


def test_a_wide_photo_shows_the_map_where_the_network_looked(page, tmp_path):
    # The network sees the middle of it, 280 x 280 pixels from column 100 on.
    choose(page, saved(photo((480, 280), shift=(100, 0)), tmp_path / "wide.png"))
    plain(page)
    picture = pixels(page)
    assert picture.shape == (280, 480, 3)
    assert is_hot_only_at(picture[:, 100:380], RED)
    assert (picture[:, :100] == 0).all()  # the photo itself, which is black there


def test_a_large_photo_is_drawn_smaller_and_at_the_right_place(page, tmp_path):
    choose(page, saved(photo().resize((2800, 2800)), tmp_path / "large.png"))
    plain(page)
    levels = page.locator("#panel-a canvas").evaluate(
        """(canvas, [y, x]) => {
            const { width, height } = canvas;
            return [width, height, ...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
        }""",
        [int((place + 0.5) * 1600 / 7) for place in RED],
    )
    assert levels[:2] == [1600, 1600] and min(levels[2:5]) > 240


def test_everything_is_reached_by_keyboard(explained):
    plain(explained)
    explained.get_by_role("link", name="Skip to the classes").focus()
    explained.keyboard.press("Enter")
    for _ in range(5):
        explained.keyboard.press("Tab")
        if explained.evaluate("document.activeElement.textContent").startswith("blue"):
            break
    explained.keyboard.press("Space")
    assert is_hot_only_at(pixels(explained), BLUE)
    # The focus stays where it was, so that the next class is one key away.
    assert explained.evaluate("document.activeElement.textContent").startswith("blue")
    explained.get_by_label("Opacity").focus()
    explained.keyboard.press("ArrowLeft")
    assert explained.locator("#opacity-value").inner_text() == "99 %"


def test_a_screen_reader_is_told_what_is_shown(explained):
    canvas = explained.locator("#panel-a canvas")
    assert canvas.get_attribute("role") == "img"
    label = canvas.get_attribute("aria-label")
    assert label.startswith("Photo with the heatmap of red, ") and label.endswith("hottest in the middle left")
    unnamed = explained.evaluate(
        """() => [...document.querySelectorAll("button, input:not([hidden]), select")]
            .filter((control) => !(control.labels?.length || control.textContent.trim()))
            .map((control) => control.outerHTML)"""
    )
    assert unnamed == []
    assert explained.locator("html").get_attribute("lang") == "en"
    assert explained.get_by_role("heading", level=1).count() == 1


def luminance(colour):
    channels = [float(number) / 255 for number in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_in_dark(browser, service, tmp_path, scheme):
    with opened(browser, service, color_scheme=scheme) as page:
        choose(page, saved(photo(), tmp_path / "a.png"))
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (luminance(ground) > 0.5) == (scheme == "light")
        for selector in ("body", "figcaption", "#model-facts", "h2", "#classes button"):
            element = page.locator(selector).first
            colour = element.evaluate("(element) => getComputedStyle(element).color")
            light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, selector


def test_a_narrow_window_has_one_column_and_nothing_beside_it(browser, service, tmp_path):
    with opened(browser, service) as page:
        page.set_viewport_size({"width": 360, "height": 700})
        choose(page, saved(photo((480, 280), shift=(100, 0)), tmp_path / "a.png"))
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        panel, controls = (page.locator(selector).bounding_box() for selector in ("#panel-a", "#controls"))
        assert controls["y"] >= panel["y"] + panel["height"]


def test_what_is_no_photo_is_told(page, tmp_path):
    path = tmp_path / "text.png"
    path.write_text("no photo")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="choose a file").click()
    chooser.value.set_files(path)
    expect(page.get_by_role("alert")).to_contain_text("This browser cannot show that file; choose a JPEG")
    assert explanations(page) == []


def test_a_service_with_a_key_asks_for_it(browser, tmp_path):
    key = "a key of this test"
    options = {"model": "support.colours:model", "names": tuple(colours.COLOURS)}
    with running(tmp_path, env={"GRADCAM_FAST_API_KEY": key}, **options) as service:
        with opened(browser, service, faults=["401"]) as page:
            assert "the key is missing or wrong" in page.get_by_role("alert").inner_text()
            page.get_by_label("Key of this service").fill(key)
            page.get_by_role("button", name="Use it").click()
            expect(page.locator("#model option")).to_be_attached()
            choose(page, saved(photo(), tmp_path / "a.png"))
            plain(page)
            assert is_hot_only_at(pixels(page), RED)


@pytest.mark.parametrize("name", ["red or blue", "red or blue, named"])
def test_of_a_package_the_classes_are_explained_that_it_was_made_for(browser, tmp_path, tmp_path_factory, name):
    path = packages.package(tmp_path_factory, name)
    with running(tmp_path, model=path) as service, opened(browser, service) as page:
        choose(page, saved(photo(), tmp_path / "a.png"))
        plain(page)
        assert page.locator("#panel-a").is_visible()
        assert page.get_by_label("Another class").is_visible() == ("named" in name)
        # The package sees the middle of the photo.
        reds, blues = (pixels(page)[CELL * row + 20, CELL * column + 20].mean() for row, column in (RED, BLUE))
        assert reds > 150 > 60 > blues
        class_button(page, "blue").click()
        expect(page.locator("#panel-a figcaption")).to_contain_text("blue")
        reds, blues = (pixels(page)[CELL * row + 20, CELL * column + 20].mean() for row, column in (RED, BLUE))
        assert blues > 150 > 60 > reds


def test_the_colormaps_are_those_of_the_library_to_within_a_few_levels(page):
    import torch

    from gradcam_fast.visual.colormaps import colormap_table

    tables = page.evaluate(
        """async () => {
            const { COLORMAPS } = await import("/static/colormaps.js");
            return Object.fromEntries(Object.entries(COLORMAPS).map(([name, table]) => [name, Array.from(table)]));
        }"""
    )
    assert set(tables) == {"jet", "viridis", "inferno", "cividis", "gray"}
    for name in ("jet", "viridis", "inferno", "cividis"):
        expected = colormap_table(name, torch.device("cpu")).numpy().astype(int)
        assert abs(numpy.array(tables[name]).reshape(256, 3) - expected).max() <= 10, name
