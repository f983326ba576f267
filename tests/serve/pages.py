"""The page in a headless Chromium, where there is one."""

import shutil
from contextlib import contextmanager

import pytest

QUESTION, ANSWER = "What is the stone of Arvid Abbott?", "ruby"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def browser():
    """One for all tests, where there is one."""
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@contextmanager
def page_at(browser, url, **context):
    """The page, and what it complained of."""
    with browser.new_context(**context) as own:
        own.set_default_timeout(20_000)
        page, problems = own.new_page(), []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: said.type == "error" and problems.append(said.text))
        page.goto(url)
        yield page, problems


def ask(page, question, answer):
    """Ask by the keyboard, and wait for the answer's end."""
    page.get_by_role("textbox", name="Question").fill(question)
    page.keyboard.press("Enter")
    turn = page.locator(".turn").last
    turn.locator(".answer").filter(has_text=answer).wait_for()
    turn.get_by_text("first after").wait_for()
    return turn


def shown(page, title):
    """The place of a document in the list."""
    return page.get_by_role("listitem").filter(has_text=title)
