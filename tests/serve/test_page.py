"""The page: its file by itself, and in a headless Chromium where there is one."""

import json
import re
import threading
import urllib.request
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from kvchat.serve.app import PAGE
from tests.serve.conftest import served, valley
from tests.serve.pages import ANSWER, QUESTION, ask, browser, page_at, shown

__all__ = ["browser"]  # a fixture


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


def test_the_page_runs_no_foreign_script(server):
    with urllib.request.urlopen(f"{server.url}/") as answer:
        policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "connect-src 'self'" in policy


def test_a_document_is_chosen_read_and_asked_about(browser, tmp_path):
    path = tmp_path / "chosen.txt"
    path.write_text(valley(12), "utf-8")
    with served(tmp_path) as server, page_at(browser, server.url) as (page, problems):
        page.get_by_role("combobox", name="Budget kept").select_option("50%")
        page.get_by_role("combobox", name="Method").select_option("streamingllm")
        page.get_by_label("Choose a document").set_input_files(path)
        shown(page, "chosen.txt").get_by_text("streamingllm keeps 50 % of entries").wait_for()
        assert "KV" in shown(page, "chosen.txt").inner_text()
        assert page.locator("#about").inner_text() == "Ask about chosen.txt"
        path.write_text(f"\U0001f6a2\U0001f6a2 {valley(13)}", "utf-8")
        page.get_by_role("combobox", name="Method").select_option("auto")
        page.get_by_role("combobox", name="Budget kept").select_option("")
        page.get_by_label("Choose a document").set_input_files(path)
        other = shown(page, "full keeps 100 %")
        other.wait_for()
        turn = ask(page, QUESTION, ANSWER)
        assert "tokens were read before" in turn.inner_text()
        assert page.get_by_role("button", name="Stop").is_disabled()
        # what the answer is from, in the list and in the text, behind characters of two halves
        source = turn.get_by_role("list", name="Sources").get_by_role("button").first
        source.focus()
        page.keyboard.press("Enter")
        mark = page.locator("mark:focus")
        mark.wait_for()
        assert ANSWER in mark.inner_text() and mark.inner_text().endswith(".")
        assert mark.inner_text()[:40] in source.inner_text()
        assert page.locator("#text").inner_text().startswith("\U0001f6a2\U0001f6a2 ")
        other.get_by_role("button", name="Delete chosen.txt").click()
        other.wait_for(state="detached")
        assert problems == []


CONTROLS = ("button", "textbox", "combobox", "listbox", "progressbar", "checkbox", "link", "radio")


def test_what_a_screen_reader_is_told(browser, server):
    """Names, roles and values of every control, also while a document comes."""
    with page_at(browser, server.url) as (page, problems):
        shown(page, "valley.txt").wait_for()
        ask(page, QUESTION, ANSWER)
        page.evaluate(
            """show({ id: "file-1", filename: "half.txt", status: "processing",
                      kvchat: { progress: 0.4, seconds_left: 7, kv_bytes: 2048 } })"""
        )
        tree = page.locator("body").aria_snapshot()
        found = re.findall(r"^ *- ([a-z]+)( \"[^\n]+?\")?((?: \[[^\]]+\])*):?", tree, re.MULTILINE)
        unnamed = [role for role, name, _ in found if role in CONTROLS and not name]
        assert not unnamed, tree
        kinds = {role for role, _, _ in found}
        assert {"banner", "complementary", "main", "log", "list", "heading", "status"} <= kinds
        levels = [int(level) for level in re.findall(r"- heading .*\[level=(\d)\]", tree)]
        assert levels == [1, 2, 2, 3]
        bar = page.get_by_role("progressbar", name="Reading half.txt")
        assert bar.evaluate("bar => [bar.value, bar.max]") == [0.4, 1]
        assert "reading 40 %, about 7 s left, KV 2.00 KiB" in shown(page, "half.txt").inner_text()
        log = page.get_by_role("log", name="Questions and answers")
        assert log.get_attribute("aria-live") == "polite"
        assert log.get_attribute("aria-busy") == "false"
        assert page.get_by_role("button", name="valley.txt", exact=True).get_attribute(
            "aria-pressed"
        ) == "true"  # fmt: skip
        assert problems == []


def test_by_keyboard_alone(browser, server):
    """Everything is reached, in the order in which it is read, and one sees where one is."""
    with page_at(browser, server.url) as (page, _):
        shown(page, "valley.txt").wait_for()
        order = []
        for _ in range(30):
            page.keyboard.press("Tab")
            now = page.evaluate(
                """() => {
                    const at = document.activeElement, style = getComputedStyle(at);
                    const box = at.getBoundingClientRect();
                    return [at.id || at.getAttribute("aria-label") || at.textContent.trim(),
                            style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
                            box.width > 0 && box.height > 0];
                }"""
            )
            assert now[1] and now[2], now
            order.append(now[0])
            if now[0] == "clear":
                break
        wanted = ["file", "method", "budget", "valley.txt", "Delete valley.txt", "talk"]
        wanted += ["The document's text", "question", "send", "clear"]
        at = [order.index(name) for name in wanted]
        assert at == sorted(at), order


def dropped(page, name, text):
    """Drop a file on the page."""
    data = page.evaluate_handle(
        """([name, text]) => {
            const data = new DataTransfer();
            data.items.add(new File([text], name, { type: "text/plain" }));
            return data;
        }""",
        [name, text],
    )
    page.dispatch_event("#drop", "dragover", {"dataTransfer": data})
    assert page.locator("#drop.over").count() == 1
    page.dispatch_event("#drop", "drop", {"dataTransfer": data})
    assert page.locator("#drop.over").count() == 0


def test_two_documents_that_are_dropped(browser, tmp_path):
    """Each has its conversation; what cannot be read is told."""
    with served(tmp_path) as server, page_at(browser, server.url) as (page, problems):
        page.get_by_text("tokens of context").wait_for()
        dropped(page, "one.txt", valley(12))
        shown(page, "one.txt").get_by_text("keeps 100 %").wait_for()
        first = ask(page, QUESTION, ANSWER).inner_text()
        dropped(page, "two.txt", valley(9))
        shown(page, "two.txt").get_by_text("keeps 100 %").wait_for()
        page.get_by_text("Ask about two.txt").wait_for()
        assert page.locator(".turn").count() == 0
        ask(page, "What is the trade of Felix Irons?", "roofing")
        page.get_by_role("button", name="one.txt", exact=True).click()
        assert page.locator(".turn").count() == 1
        assert page.locator(".turn").inner_text() == first
        ask(page, "And the trade of Felix Irons?", "roofing")
        assert problems == []
        dropped(page, "empty.txt", "")
        page.get_by_role("alert").filter(has_text="empty.txt").wait_for()
        dropped(page, "three.txt", valley(3))
        shown(page, "three.txt").get_by_text("keeps 100 %").wait_for()
        assert page.get_by_role("alert").inner_text() == "", "it is over"


def test_an_answer_is_stopped_while_it_comes(browser, server):
    def longer(route):
        more = {"ignore_eos": True, "temperature": 50, "max_tokens": 20_000}
        route.continue_(post_data=json.dumps(route.request.post_data_json | more))

    with page_at(browser, server.url) as (page, problems):
        shown(page, "valley.txt").wait_for()
        page.route("**/v1/chat/completions", longer)
        page.get_by_role("textbox", name="Question").fill("Tell me all.")
        page.get_by_role("button", name="Ask").click()
        page.locator(".answer").filter(has_text=re.compile("[^ ]{3}.{20}", re.DOTALL)).wait_for()
        assert page.get_by_role("log").get_attribute("aria-busy") == "true"
        assert page.get_by_role("button", name="Ask").is_disabled()
        page.get_by_role("button", name="Stop").focus()
        page.keyboard.press("Enter")
        page.get_by_role("log").get_by_text("stopped").wait_for()
        server.client.until(lambda: server.client.metric("answering") == 0)
        assert page.get_by_role("button", name="Ask").is_enabled()
        page.unroute("**/v1/chat/completions")
        body = json.dumps({"error": {"message": "2.00 MiB are free"}})
        page.route("**/v1/chat/completions", lambda route: route.fulfill(status=503, body=body))
        page.get_by_role("textbox", name="Question").fill("Who?")
        page.keyboard.press("Enter")
        page.get_by_role("alert").get_by_text("2.00 MiB are free").wait_for()
        assert page.locator(".turn").last.get_by_text("2.00 MiB are free").is_visible()
        assert not [each for each in problems if "503" not in each]


def test_a_key_is_asked_for(browser, tmp_path):
    with (
        served(tmp_path, api_key="secret-key") as server,
        page_at(browser, server.url) as (page, _),
    ):
        page.get_by_label("API key of this server").fill("secret-key")
        page.get_by_role("button", name="Use").click()
        page.get_by_text("tokens of context").wait_for()
        assert page.get_by_label("API key of this server").is_hidden()


@contextmanager
def other_site():
    """The origin of another server on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{site.server_port}"
        site.shutdown()
        thread.join()


def test_a_page_of_another_origin_asks_where_it_is_named(browser, tmp_path, monkeypatch):
    """What a browser makes of our headers: one origin may, with and without a preflight."""
    monkeypatch.setattr(SimpleHTTPRequestHandler, "do_GET", lambda self: self.send_error(404))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    asks = """async (url) => {
        const headers = { "content-type": "application/json" };
        const asked = { messages: [{ role: "user", content: "Who?" }], max_tokens: 1 };
        const options = { method: "POST", headers, body: JSON.stringify(asked) };
        try {
            const list = await (await fetch(url + "/v1/models")).json();
            const answer = await fetch(url + "/v1/chat/completions", options);
            return [list.data[0].id, (await answer.json()).object];
        } catch (error) { return error.name; }
    }"""
    with (
        other_site() as friend,
        other_site() as other,
        served(tmp_path, origins=[friend]) as server,
        browser.new_context() as own,
    ):
        page = own.new_page()
        page.goto(f"{friend}/")
        assert page.evaluate(asks, server.url) == ["demo", "chat.completion"]
        page.goto(f"{other}/")
        assert page.evaluate(asks, server.url) == "TypeError"
