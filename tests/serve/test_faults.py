"""Clients that go away, are slow, or mean harm: they harm no other, and are refused in due form."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from kvchat.engine.text.chat_template import Dialogue
from kvchat.serve import patience, wire
from kvchat.serve.refusals import Refusal
from kvchat.serve.scheduler import Scheduler
from tests.serve.conftest import served
from tests.serve.test_documents import form

QUESTION, ANSWER = "What is the stone of Arvid Abbott?", "ruby"
CHAT = "/v1/chat/completions"
LONG = {"model": "demo", "temperature": 50, "ignore_eos": True, "max_tokens": 20_000,
        "messages": [{"role": "user", "content": "Tell me all."}]}  # fmt: skip


def raw(client, data, wait=5.0):
    """What is answered to bytes, until the connection ends or so many seconds have passed."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=wait) as line:
        line.sendall(data)
        got = b""
        try:
            while piece := line.recv(65536):
                got += piece
        except (TimeoutError, ConnectionResetError):
            pass
        return got


def head(path, length, kind="application/json", method="POST"):
    text = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n"
    return f"{text}content-length: {length}\r\n\r\n".encode()


def still_answers(client):
    assert ANSWER in client.ask(QUESTION)["choices"][0]["message"]["content"]


def endless(client, stream, small=None):
    """A request whose answer takes long: the open connection, with a `small` buffer."""
    asked = LONG | {"stream": stream, "logprobs": True, "top_logprobs": 20 if small else 0}
    body = json.dumps(asked).encode()
    line = socket.socket()
    if small is not None:
        line.setsockopt(socket.SOL_SOCKET, small, 1024)
    line.connect(("127.0.0.1", client.port))
    line.sendall(head(CHAT, len(body)) + body)
    client.until(lambda: client.metric("answering") >= 1)
    return line


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(client, stream):
    cancelled = client.metric("answers_cancelled_total")
    line = endless(client, stream)
    line.close()
    client.until(lambda: client.metric("answering") == 0)
    assert client.metric("answers_cancelled_total") == cancelled + 1
    still_answers(client)


def test_one_that_goes_while_its_question_is_read(client):
    """A question of 20,000 tokens is read for seconds."""
    cancelled = client.metric("answers_cancelled_total")
    asked = {"model": "demo", "messages": [{"role": "user", "content": "mill " * 20_000}]}
    body = json.dumps(asked).encode()
    with socket.create_connection(("127.0.0.1", client.port)) as line:
        line.sendall(head(CHAT, len(body)) + body)
        client.until(lambda: client.metric("answering") == 1)
        still_answers(client)  # another one is answered beside
    client.until(lambda: client.metric("answering") == 0)
    assert client.metric("answers_cancelled_total") == cancelled + 1


def test_a_client_that_does_not_read_holds_up_nobody(client):
    line = endless(client, True)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    still_answers(client)
    line.close()
    client.until(lambda: client.metric("answering") == 0)


def test_an_answer_that_is_not_taken_ends(client, monkeypatch):
    """The connection, and all that is kept for it."""
    monkeypatch.setattr(patience, "TAKE_SECONDS", 0.2)
    cancelled = client.metric("answers_cancelled_total")
    line = endless(client, True, socket.SO_RCVBUF)
    client.until(lambda: client.metric("answers_cancelled_total") == cancelled + 1)
    line.close()
    still_answers(client)


@pytest.mark.parametrize(
    "data, status",
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[1]", 400),
        (b'{"messages": ' + b"[" * 50_000, 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1e400}', 400),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", 400),
    ],
)
def test_bodies_that_are_no_request(client, data, status):
    got, found = client.post(CHAT, data)
    assert got == status and found["error"]["type"] == "invalid_request_error"


def test_other_kinds_of_bodies_are_refused(client):
    """What any page may send without asking is no JSON."""
    asked = json.dumps({"model": "valley", "messages": []}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert client.post(CHAT, asked, **{"content-type": kind})[0] == 415


def test_bodies_that_are_too_large_are_refused_unread(client, server):
    most = server.settings.max_upload
    for path, size in ((CHAT, 100 * 10**6), ("/v1/files", most + 1)):
        got = raw(client, head(path, size) + b"x" * 1000)
        assert b" 413 " in got.split(b"\r\n")[0]
    chunk = b"%x\r\n%s\r\n" % (2**20, b"x" * 2**20)
    start = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
    start += b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as line:
        line.sendall(start)
        try:
            for _ in range(100):
                line.sendall(chunk)
            got = line.recv(100)
        except (ConnectionResetError, BrokenPipeError):
            got = b" 413 "
        assert b" 413 " in got
    still_answers(client)


def test_half_open_and_slow_connections(client, monkeypatch):
    """Heads that never end and bodies that never come: others are answered meanwhile."""
    monkeypatch.setattr(wire, "BODY_SECONDS", 1.0)
    lines = []
    for data in (b"", b"POST /v1/ch", head(CHAT, 500), head(CHAT, 500) + b'{"model"'):
        line = socket.create_connection(("127.0.0.1", client.port), timeout=60)
        line.sendall(data)
        lines.append(line)
    still_answers(client)
    assert b" 408 " in lines[2].recv(4096) and b" 408 " in lines[3].recv(4096)
    for line in lines:
        line.close()


def test_connections_that_say_nothing_are_closed(client, monkeypatch):
    monkeypatch.setattr(patience, "HEAD_SECONDS", 1.0)
    with (
        socket.create_connection(("127.0.0.1", client.port), timeout=60) as silent,
        socket.create_connection(("127.0.0.1", client.port), timeout=60) as slow,
    ):
        slow.sendall(b"GET /health HTT")
        assert silent.recv(10) == b"" and slow.recv(10) == b""
    line, end = endless(client, True), time.monotonic() + 1.5  # one that is answered is not
    while time.monotonic() < end:
        assert line.recv(65536)
    assert client.metric("answering") == 1
    line.close()
    client.until(lambda: client.metric("answering") == 0)


def test_texts_that_cannot_fit_are_not_looked_at(client, monkeypatch):
    monkeypatch.setattr(Dialogue, "conversation", None)
    asked = {"model": "valley", "messages": [{"role": "user", "content": "x " * 3 * 10**6}]}
    status, found = client.post(CHAT, asked)
    assert status == 400 and found["error"]["code"] == "context_length_exceeded"


def test_what_is_no_http(client):
    for data in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 100):
        got = raw(client, data, wait=1)
        assert got == b"" or b" 40" in got.split(b"\r\n")[0]
    long = raw(client, b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", wait=2)
    assert b" 40" in long[:20] or long == b""
    still_answers(client)


@pytest.mark.parametrize(
    "name",
    [
        "../../../../etc/passwd",
        "/etc/passwd",
        "..\\..\\boot.ini",
        "a\0b",
        "\x1b[2J",
        "\u202etxt",
        "~/x",
    ],
)
def test_names_are_no_paths(client, server, name):
    safe = name.encode("utf-8").replace(b"\0", b"%00").decode()
    data, kind = form(safe, b"The stone of Arvid Abbott is ruby.")
    status, _, found = client.send("POST", "/v1/files", data, {"content-type": kind})
    assert status == 200
    about = json.loads(found)
    assert not set(about["filename"]) & set("/\\\0\x1b\u202e")
    kept = [path.name for path in (server.settings_folder).iterdir()]
    assert f"{about['id']}.json" in kept
    client.send("DELETE", f"/v1/files/{about['id']}")
    for path in ("/v1/files/..%2f..%2fetc%2fpasswd", "/v1/files/../served", "/%2e%2e/etc/passwd"):
        assert client.send("GET", path)[0] == 404


def test_who_waits_and_who_is_too_many(tmp_path, book):
    with served(tmp_path, book, askers="1", queue="1") as server:
        client = server.client
        client.read()
        first = endless(client, True)
        waiting = endless(client, True)
        client.until(lambda: client.metric("waiting") == 1)
        status, headers, data = client.send(
            "POST", CHAT, json.dumps(LONG).encode(), {"content-type": "application/json"}
        )
        assert status == 429 and json.loads(data)["error"]["type"] == "rate_limit_error"
        assert int(headers["retry-after"]) > 0
        first.close()
        client.until(lambda: client.metric("waiting") == 0)
        assert client.metric("answering") == 1, "it is the next one's turn"
        waiting.close()
        client.until(lambda: client.metric("answering") == 0)
        assert client.metric("answers_cancelled_total") == 2


def test_as_many_wait_where_memory_is_the_limit(monkeypatch):
    """One is being answered, and who is first in the queue does not fit beside it."""
    monkeypatch.setattr(Scheduler, "room", lambda scheduler: 10)
    scheduler, large = Scheduler(None, most=4, queue=2), SimpleNamespace(planned=100)
    scheduler._answering.append(large)
    for _ in range(2 + 4 - 1):
        scheduler.ask(large)
    with pytest.raises(Refusal) as refused:
        scheduler.ask(large)
    assert refused.value.status == 429


def test_memory_is_planned_for_each_request(tmp_path, book, monkeypatch):
    """One that never fits is refused with numbers, and others are answered."""
    with served(tmp_path, book) as server:
        client = server.client
        client.read()
        each = server.chat.session.engine.kv_bytes(1)
        monkeypatch.setattr("kvchat.machine.resources.left", lambda *_: 6000 * each)
        asked = {"messages": [{"role": "user", "content": QUESTION}], "model": "valley"}
        status, found = client.post(CHAT, asked | {"max_tokens": 20_000})
        assert status == 503 and found["error"]["code"] == "insufficient_memory"
        assert "MiB" in found["error"]["message"]
        with ThreadPoolExecutor(6) as pool:  # three at a time have room
            wanted = [asked | {"max_tokens": 1000}] * 6
            got = list(pool.map(lambda each: client.post(CHAT, each), wanted))
        assert [status for status, _ in got] == [200] * 6
