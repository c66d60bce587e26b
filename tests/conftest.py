"""What tests share: the scripts of tools/, which are not a package; one thread; a browser."""

import functools
import http.server
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))


@pytest.fixture(autouse=True, scope="module")  # before what a module shares
def _one_thread(request):
    """Threads that wait for each other over a few numbers take a hundred times as long."""
    if "benchmarks" in request.path.parts:  # those measure what a reader gets
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium where there is one, else Playwright's own."""
    from playwright.sync_api import Error, sync_playwright  # here: most tests need none

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
    from tests.built import HTML  # here: it needs the path that is set above

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
