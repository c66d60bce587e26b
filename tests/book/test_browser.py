"""The built book in a real browser, with every other host out of reach.

Opens each page from a local server and from disk, moves each widget by keyboard, and looks for the
picture to change, for formulas, for errors in the console and for requests to other hosts; then for
what other readers need: a phone, a dark room, a screen reader, paper, no JavaScript, a slow line.
"""

import gzip
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import chromium
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route

from tests.built import HTML, PAGES, ROOT, file_of, read

WIDTHS = [360, 768, 1440, 1920]  # pixels: a phone, a tablet, two screens
# What a page may make a slow line (1.6 Mbit a second, 0.15 s a way) carry before its text is seen;
# at 95 kB, Chromium shows it after 1.6 s.
BEFORE_TEXT = 120_000  # bytes, compressed as GitHub Pages sends them
CODE = "book/foundations/laboratory"  # a page with every kind of code
# With widgets and formulas; with a live model; deeper than the others.
FROM_DISK = [
    "book/intro", "book/methods/fdt", "book/foundations/clip", "book/reference/api/losses"
]  # fmt: skip
METHODS = ["CLIP", "SigLIP", "MoCo", "MCT", "FDT", "GMC", "LateFusion", "MVAE"]
VIEWS = "script[type='application/vnd.jupyter.widget-view+json']"

pytestmark = pytest.mark.browser


@dataclass
class Opened:
    """A page in the browser, and what it did since it was opened."""

    page: Page
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


@pytest.fixture
def open_page(browser: Browser, site: str):
    """A function that opens a page of the book by its name and waits until it stands."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(20_000)
    vendored = (ROOT / "book" / "_extra" / "vendor" / "complete.txt").exists()

    def open_(name: str, base: str) -> Opened:
        opened = Opened(context.new_page())

        def note_console(message: ConsoleMessage) -> None:
            if message.type == "error":
                opened.errors.append(f"{message.text} ({message.location['url']})")

        def guard(route: Route) -> None:
            if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
                route.continue_()
            elif vendored:
                opened.foreign.append(route.request.url)
                route.abort()
            else:  # without npm the book needs its CDN, as tools/vendor.py said
                route.continue_()

        opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.page.on("console", note_console)
        opened.page.route("**/*", guard)
        opened.page.goto(f"{base}/{name}.html")
        opened.page.wait_for_load_state("load")
        if opened.page.locator(VIEWS).count():
            # The html-manager draws all widgets of a page in one go, after the page has loaded.
            opened.page.locator(".jupyter-widgets").first.wait_for(state="attached")
        return opened

    yield open_
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, open_page, site: str) -> None:
    """Everything about one page, so that it is loaded once."""
    opened = open_page(name, site)
    assert not (faults := chromium.formula_faults(opened.page)), faults
    check_access(opened.page)
    show_folded(opened.page)
    check_widgets(opened.page)
    check_live(opened.page)
    check_widths(opened.page)
    check_print(opened.page)
    check_console(opened)


@pytest.mark.parametrize("name", FROM_DISK)
def test_page_from_disk(name: str, open_page) -> None:
    """What differs is where the page looks for its files: the same on all pages of one depth."""
    opened = open_page(name, HTML.as_uri())
    assert not (faults := chromium.formula_faults(opened.page)), faults
    show_folded(opened.page)
    check_widgets(opened.page)
    check_live(opened.page)
    check_console(opened)


def test_each_depth_is_opened_from_disk() -> None:
    assert {name.count("/") for name in FROM_DISK} == {name.count("/") for name in PAGES}


def test_a_formula_that_is_not_rendered_is_found(browser: Browser) -> None:
    page = browser.new_page()
    page.set_content(
        '<p class="math">\\(a \\frac b c\\)</p><p class="math"><mjx-container>x</mjx-container></p>'
        '<p class="math"><mjx-container><i data-mjx-error="Missing }">x</i></mjx-container></p>'
        '<mjx-assistive-mml><i mathcolor="red">\\nosuch</i></mjx-assistive-mml>'
    )
    assert chromium.formula_faults(page) == [
        r"not rendered: \(a \frac b c\)",
        "an error: Missing }",
        r"unknown to MathJax: \nosuch",
    ]
    page.close()


def check_console(opened: Opened) -> None:
    """The page asks no other host for anything, and reports no error."""
    assert not opened.foreign, f"asked other hosts for {opened.foreign}"
    assert not opened.errors, "errors in the console:\n" + "\n".join(opened.errors)


def check_access(page: Page) -> None:
    """axe-core finds nothing serious, and enough contrast in the dark theme, too."""
    options = {"resultTypes": ["violations"], "preload": False}  # or it fetches styles again
    # Thousands of pieces of code in the same few colours: on one page they are enough.
    context = None if page.url.endswith(f"{CODE}.html") else {"exclude": [["div.highlight pre"]]}
    page.add_style_tag(content="* { transition: none !important }")  # no colours on their way
    for theme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        found = Axe().run(page, context, {**options, **rules}).response["violations"]
        serious = [
            f"{theme}: {violation['help']}: {node['html'][:200]}"
            for violation in found
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]
        assert not serious, "\n".join(serious)


def check_widths(page: Page) -> None:
    """Nothing makes the page wider than the screen, and the keyboard reaches what scrolls."""
    size = page.viewport_size
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{wide} pixels wide on a screen of {width}"
    # The first is the narrowest; on it, the most has to scroll.
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    page.wait_for_timeout(500)  # the theme looks at code some time after the last change of size
    rule = {"runOnly": ["scrollable-region-focusable"], "preload": False}
    lost = Axe().run(page, None, rule).response["violations"]
    out_of_reach = [node["html"][:200] for violation in lost for node in violation["nodes"]]
    assert not out_of_reach, f"the keyboard does not reach {out_of_reach}"
    page.set_viewport_size(size)


def check_print(page: Page) -> None:
    """On paper, each widget is its first frame, and a sentence tells what moving would show."""
    page.emulate_media(media="print")
    assert page.locator(".mmcl-scrub:visible, .mmcl-live:visible").count() == 0
    check_stills(page)
    page.emulate_media(media="screen")
    assert page.locator(".mmcl-still:visible").count() == 0


def check_stills(page: Page) -> None:
    """Each widget of the page has a picture that is seen and a sentence on its motion."""
    views = page.locator(VIEWS).count() + page.locator(".mmcl-place").count()
    assert page.locator(".mmcl-still img:visible").count() == views
    assert page.locator(".mmcl-still p:visible:has(.mmcl-moving)").count() == views


def show_folded(page: Page) -> None:
    """Unfold solutions, so that widgets in them can be seen."""
    page.evaluate(
        "document.querySelectorAll('.toggle-hidden')"
        ".forEach(folded => folded.classList.remove('toggle-hidden'));"
        "document.querySelectorAll('details').forEach(folded => folded.open = true)"
    )


def check_widgets(page: Page) -> None:
    """Each widget of the page is drawn, and each of its controls moves its picture by keyboard."""
    views = page.locator(VIEWS).count()
    widgets = page.locator(".mmcl-scrub")
    assert widgets.count() == views, f"{views} widgets in the page, {widgets.count()} drawn"
    for widget in widgets.all():
        controls = widget.locator("[role=slider], select, input[type=radio]:checked")
        assert controls.count() > 0
        for control in controls.all():
            move(widget, control)


def check_live(page: Page) -> None:
    """Each live figure of the page stands, agrees with its still frame, and moves by keyboard."""
    for place in page.locator(".mmcl-place").all():
        root = place.locator(".mmcl-live")
        root.wait_for(state="visible")
        if root.get_attribute("data-score"):
            shown = f"{float(root.get_attribute('data-score')):.2f}"
            assert f"similarity {shown} " in place.locator(".mmcl-still p").inner_text()
        before = root.evaluate("root => JSON.stringify(root.dataset)")
        select = root.locator("select").first
        select.focus()
        for key in ("ArrowDown", "ArrowUp", "ArrowUp"):  # the others for one that stands at its end
            select.press(key)
            page.wait_for_timeout(300)
            if root.evaluate("root => JSON.stringify(root.dataset)") != before:
                break
        assert root.evaluate("root => JSON.stringify(root.dataset)") != before


def move(widget: Locator, control: Locator) -> None:
    """Press an arrow key on the control; another picture must be seen, with another alt text."""
    picture = widget.locator("img")
    before = picture.get_attribute("src"), picture.get_attribute("alt")
    control.focus()
    for key in ("ArrowRight", "ArrowLeft"):  # the second for a control that stands at its end
        control.press(key)
        if picture.get_attribute("src") != before[0]:
            break
    assert picture.get_attribute("src") != before[0], f"{before[1]}: the picture did not change"
    assert picture.get_attribute("alt") != before[1]
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    box = picture.bounding_box()
    assert box["width"] > 50
    assert box["height"] > 50


MOVING = ("scrub(", "live(", "circle(")
TEXTS = {page: (ROOT / f"{page}.md").read_text("utf-8") for page in PAGES}
WITH_WIDGETS = [page for page, text in TEXTS.items() if any(f"\n{m}" in text for m in MOVING)]


@pytest.mark.parametrize("name", WITH_WIDGETS)
def test_without_javascript(name: str, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file_of(name).as_uri())
    check_stills(page)
    context.close()


def test_a_touch_moves_a_widget(browser: Browser, site: str) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(f"{site}/{PAGES[0]}.html")
    widget = page.locator(".mmcl-scrub").first
    widget.scroll_into_view_if_needed()
    before = widget.locator("img").get_attribute("alt")
    handle = widget.locator("[role=slider]")
    start, track = handle.bounding_box(), widget.locator(".noUi-target").bounding_box()
    y = track["y"] + track["height"] / 2
    page.touchscreen.tap(track["x"] + 0.66 * track["width"], y)
    assert widget.locator("img").get_attribute("alt") != before
    assert start["width"] >= 16
    context.close()


@pytest.mark.parametrize("word", METHODS)
def test_search_finds_each_method(word: str, browser: Browser, site: str) -> None:
    page = browser.new_page()
    page.goto(f"{site}/search.html?q={word}")
    result = page.locator("#search-results li a").first
    result.wait_for(timeout=20_000)
    assert urlsplit(result.get_attribute("href")).path.startswith("book/")
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_little_comes_before_the_text(name: str) -> None:
    """The start of the page, and the styles and scripts that hold it up, take a slow line < 2 s."""
    path = file_of(name)
    html = path.read_text(encoding="utf-8")
    page = read(path)
    up_to_title = html[: html.index("<h1>")].encode()
    scripts = [
        script["src"]
        for script in page.head.find_all("script", src=True)
        if not ({"defer", "async"} & set(script.attrs))
    ]
    styles = [link["href"] for link in page.head.find_all("link", rel="stylesheet")]
    files = [path.parent / urlsplit(source).path for source in scripts + styles]
    size = sum(len(gzip.compress(data)) for data in [up_to_title, *(f.read_bytes() for f in files)])
    assert size <= BEFORE_TEXT, f"{size} bytes before the text: {scripts} {styles}"


@pytest.mark.parametrize("name", [p for p in PAGES if (ROOT / f"{p}.ipynb").exists()])
def test_colab_button_leads_to_the_notebook_of_the_page(name: str) -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    place = config["repository"]["url"].removeprefix("https://github.com/")
    text = (HTML / f"{name}.html").read_text(encoding="utf-8")
    assert f"https://colab.research.google.com/github/{place}/blob/main/{name}.ipynb" in text
