"""The browser that prints the book, takes its pictures and tests it."""

import shutil

from playwright.sync_api import Browser, Playwright

# Chromium refuses its sandbox to root, as which containers run.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def launch(playwright: Playwright) -> Browser:
    """Debian's Chromium where there is one, else Playwright's own."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    return playwright.chromium.launch(executable_path=found, args=FLAGS)
