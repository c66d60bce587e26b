"""The built book in a real browser, with every other host out of reach.

Opens each page from a local server and from disk, moves each widget by keyboard, and looks for the
picture to change, for formulas, for errors in the console and for requests to other hosts.
"""

import functools
import http.server
import re
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Error,
    Locator,
    Page,
    Route,
    sync_playwright,
)

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
LARGEST_PAGE = 3_000_000  # bytes of a page with its own pictures and widgets

# What the theme itself leaves in the console, on an empty page too.
THEME_ERRORS = [
    # jupyter-book and its theme both declare it.
    r"Identifier 'THEBE_JS_URL' has already been declared",
]
# From disk, a browser refuses the theme's preload of an icon font. It is not needed: the icons come
# as SVG from a script.
DISK_ERRORS = [
    r"Access to font at 'file:.*fontawesome.*' from origin 'null' has been blocked",
    r"Failed to load resource: net::ERR_FAILED",
]

pytestmark = pytest.mark.browser


def pages_of_the_book() -> list[str]:
    """The pages that _toc.yml lists, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    parts = toc.get("parts", [toc])
    return [toc["root"], *(entry["file"] for part in parts for entry in part["chapters"])]


PAGES = pages_of_the_book()


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium where there is one, else Playwright's own."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    # Chromium refuses its sandbox to root, as which containers run.
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=found, args=flags)
        except Error as error:
            chromium, reason = None, str(error).splitlines()[0]
        if chromium is None:
            pytest.fail(
                f"No browser to test the book with ({reason}). Install one, and run again:\n"
                "    apt-get install chromium                  (Debian)\n"
                "    .venv/bin/playwright install chromium     (elsewhere)",
                pytrace=False,
            )
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def site() -> str:
    """The address of a local server of the built book."""
    if not (HTML / "index.html").exists():
        pytest.fail("There is no built book to test; run `make book` first.")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    handler = functools.partial(Quiet, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@dataclass
class Opened:
    """A page in the browser, and what it did since it was opened."""

    page: Page
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


@pytest.fixture(params=["server", "disk"])
def open_page(request, browser: Browser, site: str):
    """A function that opens a page of the book by its name and waits until it stands."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(20_000)
    vendored = (ROOT / "book" / "_extra" / "vendor" / "complete.txt").exists()
    base = site if request.param == "server" else HTML.as_uri()
    allowed = THEME_ERRORS + (DISK_ERRORS if request.param == "disk" else [])

    def open_(name: str) -> Opened:
        opened = Opened(context.new_page())

        def note(text: str) -> None:
            if not any(re.search(pattern, text) for pattern in allowed):
                opened.errors.append(text)

        def note_console(message: ConsoleMessage) -> None:
            if message.type == "error":
                note(f"{message.text} ({message.location['url']})")

        def guard(route: Route) -> None:
            if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
                route.continue_()
            elif vendored:
                opened.foreign.append(route.request.url)
                route.abort()
            else:  # without npm the book needs its CDN, as tools/vendor.py said
                route.continue_()

        opened.page.on("pageerror", lambda error: note(str(error)))
        opened.page.on("console", note_console)
        opened.page.route("**/*", guard)
        opened.page.goto(f"{base}/{name}.html")
        opened.page.wait_for_load_state("load")
        views = opened.page.locator("script[type='application/vnd.jupyter.widget-view+json']")
        if views.count():
            # The html-manager draws all widgets of a page in one go, after the page has loaded.
            opened.page.locator(".jupyter-widgets").first.wait_for(state="attached")
        opened.page.wait_for_function(
            "() => !window.MathJax?.startup?.promise || MathJax.startup.promise.then(() => true)"
        )
        return opened

    yield open_
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, open_page) -> None:
    """Everything about one page, so that it is loaded once."""
    opened = open_page(name)
    check_formulas(opened.page)
    show_folded(opened.page)
    check_widgets(opened.page)
    assert not opened.foreign, f"asked other hosts for {opened.foreign}"
    assert not opened.errors, "errors in the console:\n" + "\n".join(opened.errors)


def check_formulas(page: Page) -> None:
    """Each formula is rendered, and none as an error."""
    formulas = page.locator(".math")
    rendered = page.locator(".math:has(mjx-container)")
    assert rendered.count() == formulas.count(), "formulas that are not rendered"
    errors = page.locator("[data-mjx-error]")
    assert errors.count() == 0, errors.first.get_attribute("data-mjx-error")
    undefined = page.locator("mjx-assistive-mml [mathcolor=red]")  # how MathJax marks them
    assert undefined.count() == 0, f"unknown to MathJax: {undefined.first.text_content()}"


def show_folded(page: Page) -> None:
    """Unfold solutions, so that widgets in them can be seen."""
    page.evaluate(
        "document.querySelectorAll('.toggle-hidden')"
        ".forEach(folded => folded.classList.remove('toggle-hidden'));"
        "document.querySelectorAll('details').forEach(folded => folded.open = true)"
    )


def check_widgets(page: Page) -> None:
    """Each widget of the page is drawn, and each of its controls moves its picture by keyboard."""
    views = page.locator("script[type='application/vnd.jupyter.widget-view+json']").count()
    widgets = page.locator(".mmcl-scrub")
    assert widgets.count() == views, f"{views} widgets in the page, {widgets.count()} drawn"
    for widget in widgets.all():
        controls = widget.locator("[role=slider], select, input[type=radio]:checked")
        assert controls.count() > 0
        for control in controls.all():
            move(widget, control)


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


@pytest.mark.parametrize("name", PAGES)
def test_page_size(name: str) -> None:
    """A page with its widgets and pictures is at most 3 MB."""
    path = HTML / f"{name}.html"
    text = path.read_text(encoding="utf-8")
    pictures = {path.parent / source for source in re.findall(r'<img[^>]* src="([^":]+)"', text)}
    size = path.stat().st_size + sum(p.stat().st_size for p in pictures if p.exists())
    assert size <= LARGEST_PAGE, f"{name}: {size / 1e6:.1f} MB"


@pytest.mark.parametrize("name", [p for p in PAGES if (ROOT / f"{p}.ipynb").exists()])
def test_colab_button_leads_to_the_notebook_of_the_page(name: str) -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    place = config["repository"]["url"].removeprefix("https://github.com/")
    text = (HTML / f"{name}.html").read_text(encoding="utf-8")
    assert f"https://colab.research.google.com/github/{place}/blob/main/{name}.ipynb" in text
