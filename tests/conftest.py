"""What tests share: the scripts of tools/, which are not a package; one thread; a browser."""

import functools
import http.server
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests import float32

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
float32.guard()
# Nothing is judged by the clock: by itself, hypothesis fails an example that takes over 0.2 s.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


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
    """The browser of tools/chromium.py; without one, advice."""
    import chromium  # here: most tests need none
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        try:
            launched = chromium.launch(playwright)
        except SystemExit as advice:  # here pytest would end with all that it has not run yet
            pytest.fail(str(advice), pytrace=False)
        yield launched
        launched.close()


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
