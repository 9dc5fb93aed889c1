"""A browser for the tests that look at pages: Chromium, offline, listening for whatever goes wrong."""

import os
import re
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not program:
        pytest.skip("no Chromium found: expected chromium, chromium-browser or google-chrome on the PATH")
    with sync_api.sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=program) as browser:
            yield browser


class Visit:
    "A page opened offline; what it asks for and complains about is kept."

    def __init__(self, browser, **options):
        self.context = browser.new_context(offline=True, **options)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on(
            "request",
            lambda r: self.asked.append(r.url) if not r.url.startswith(("file:", "data:")) else None,
        )
        self.page.on("requestfailed", lambda r: self.said.append(f"failed: {r.url}"))
        self.page.on(
            "console", lambda m: self.said.append(m.text) if m.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda e: self.said.append(str(e)))

    def open(self, path: Path):
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached")
        return self.page


@pytest.fixture
def visit(browser, request):
    made = Visit(browser, **getattr(request, "param", {}))
    yield made
    made.context.close()
    assert made.asked == [] and made.said == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    "With `LUNGSEG_COMPLETE=1`, as in CI, only real data and Quarto may be absent; another skip is a failure."
    report = yield
    excused = re.search(r"real data|shared/data|[Qq]uarto|git checkout", str(report.longrepr))
    if report.skipped and os.environ.get("LUNGSEG_COMPLETE") and not excused:
        report.outcome = "failed"
    return report


def pytest_collection_modifyitems(items):
    "The longest file first, so that the cores end together."
    items.sort(key=lambda item: item.path.name != "test_report.py")
