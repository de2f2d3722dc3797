"""What docs.py and console.py share: a browser that notes whatever is complained of, and every request that goes anywhere else.

Needs playwright and Chromium ($CHROMIUM).
"""

import os
import sys
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

base = sys.argv[1]
shots = sys.argv[2] if len(sys.argv) > 2 else None
trouble = []


@contextmanager
def chromium():
    """Playwright and the browser; at the end, whatever was noted is a failure."""
    with sync_playwright() as playwright:
        program = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield playwright, browser
        browser.close()
    if trouble:
        sys.exit("\n".join(trouble))


def watched(page):
    """The page, of which everything is noted that should not be."""
    page.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: urlsplit(request.url).netloc in (urlsplit(base).netloc, "") or trouble.append(request.url))
    return page


def shoot(page, name):
    """Keeps what the whole page looks like, if a directory was named."""
    if shots:
        page.screenshot(path=f"{shots}/{name}.png", full_page=True)


def assert_fits(page, width):
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"{wide} px wide on a screen of {width}"
