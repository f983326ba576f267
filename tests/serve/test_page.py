"""The page: its file by itself, and in a headless Chromium where there is one."""

import re
import shutil
import urllib.request
from contextlib import contextmanager
from html.parser import HTMLParser

import pytest

from kvchat.serve.app import PAGE
from tests.serve.conftest import served, valley

QUESTION, ANSWER = "What is the stone of Arvid Abbott?", "ruby"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_nothing_comes_from_elsewhere_and_everything_has_a_name():
    text, elements = PAGE.read_text("utf-8"), Elements()
    elements.feed(text)
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//|url\(|@import", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert not [a for _, a in elements.found if any(name.startswith("on") for name in a)]
    labelled = {a["for"] for tag, a in elements.found if tag == "label"}
    fields = [a["id"] for tag, a in elements.found if tag in ("input", "select", "textarea")]
    assert set(fields) == labelled and len(fields) >= 5
    ids = [a["id"] for _, a in elements.found if "id" in a]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"\$\(\"([a-z-]+)\"\)", text)) <= set(ids)


def contrast(one, other):
    """WCAG's ratio of two colours `#rrggbb`."""
    shades = []
    for colour in (one, other):
        full = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(full[n : n + 2], 16) / 255 for n in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        shades.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(shades) + 0.05) / (min(shades) + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(dark):
    rules = re.findall(r":root \{([^}]*)\}", PAGE.read_text("utf-8"))[dark]
    colours = dict(re.findall(r"--([a-z-]+): (#\w+)", rules))
    for front in ("front", "soft", "accent", "bad"):
        for back in ("back", "panel"):
            assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
    assert contrast(colours["front"], colours["mark"]) >= 4.5


def test_the_page_runs_no_foreign_script(server):
    with urllib.request.urlopen(f"{server.url}/") as answer:
        policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "connect-src 'self'" in policy


@contextmanager
def page_at(url, **context):
    """The page in a browser, and what it complained of."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_context(**context).new_page()
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: said.type == "error" and problems.append(said.text))
        page.goto(url)
        yield page, problems
        browser.close()


needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")


@needs_browser
def test_a_document_is_chosen_read_and_asked_about(tmp_path):
    pytest.importorskip("playwright")
    path = tmp_path / "chosen.txt"
    path.write_text(valley(12), "utf-8")
    with served(tmp_path) as server, page_at(f"{server.url}/") as (page, problems):
        page.get_by_role("combobox", name="Budget kept").select_option("50%")
        page.get_by_role("combobox", name="Method").select_option("streamingllm")
        page.get_by_label("Choose a document").set_input_files(path)
        item = page.get_by_role("listitem").filter(has_text="chosen.txt")
        item.get_by_text("streamingllm keeps 50 % of entries").wait_for(timeout=20_000)
        assert (
            "KV" in item.inner_text()
            and page.get_by_role("heading", level=2).nth(1).inner_text() == "Ask about chosen.txt"
        )
        path.write_text(valley(13), "utf-8")
        page.get_by_role("combobox", name="Method").select_option("auto")
        page.get_by_role("combobox", name="Budget kept").select_option("")
        page.get_by_label("Choose a document").set_input_files(path)
        other = page.get_by_role("listitem").filter(has_text="full keeps 100 %")
        other.wait_for(timeout=20_000)
        # by keyboard alone
        page.get_by_role("textbox", name="Question").focus()
        page.keyboard.type(QUESTION)
        page.keyboard.press("Enter")
        log = page.get_by_role("log")
        log.get_by_text(ANSWER).wait_for(timeout=20_000)
        log.get_by_text("tokens were read before").wait_for(timeout=20_000)
        assert page.get_by_role("button", name="Stop").is_disabled()
        page.get_by_text("The document's text").click()
        page.locator("mark").first.wait_for(timeout=20_000)
        assert ANSWER in " ".join(page.locator("mark").all_inner_texts())
        other.get_by_role("button", name="Delete chosen.txt").click()
        other.wait_for(state="detached")
        assert problems == []


@needs_browser
def test_phone_width_stop_and_dark(server):
    pytest.importorskip("playwright")
    small = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
    with page_at(f"{server.url}/", **small) as (page, problems):
        page.get_by_role("listitem").filter(has_text="valley.txt").wait_for(timeout=20_000)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 23, 22)"
        page.route("**/v1/chat/completions", lambda route: None)  # an answer that never comes
        page.get_by_role("textbox", name="Question").fill("Who?")
        page.get_by_role("button", name="Ask").click()
        stop = page.get_by_role("button", name="Stop")
        page.wait_for_function("!document.getElementById('stop').disabled")
        stop.focus()
        page.keyboard.press("Enter")
        page.get_by_role("log").get_by_text("stopped").wait_for(timeout=5000)
        names = page.locator("button").evaluate_all(
            "all => all.map(each => each.getAttribute('aria-label') || each.textContent.trim())"
        )
        assert all(names)
        assert problems == []


@needs_browser
def test_a_key_is_asked_for(tmp_path):
    pytest.importorskip("playwright")
    with (
        served(tmp_path, api_key="secret-key") as server,
        page_at(f"{server.url}/") as (page, _),
    ):
        page.get_by_label("API key of this server").fill("secret-key")
        page.get_by_role("button", name="Use").click()
        page.get_by_text("tokens of context").wait_for(timeout=10_000)
        assert page.get_by_label("API key of this server").is_hidden()
