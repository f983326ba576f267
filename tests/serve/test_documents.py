"""Documents that clients send: read once, asked about by name or by id, found again on disk."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvchat.documents import decode
from kvchat.serve import document as documents
from tests.serve.conftest import Client, held, served, valley
from tests.support.program import ONE_THREAD

QUESTION, ANSWER = "What is the trade of Felix Irons?", "roofing"
LIMB = b"--limb"


def form(name, data, **fields):
    """A multipart body with a file, and its content type."""
    parts = [
        b"%s\r\ncontent-disposition: form-data; name=%s\r\n\r\n%s"
        % (LIMB, key.encode(), value.encode())
        for key, value in fields.items()
    ]
    about = f'content-disposition: form-data; name="file"; filename="{name}"'.encode()
    parts.append(LIMB + b"\r\n" + about + b"\r\n\r\n" + data)
    return b"\r\n".join([*parts, LIMB + b"--\r\n"]), "multipart/form-data; boundary=limb"


def sent(client, name, text, **fields):
    """What is answered to a document."""
    data, kind = form(name, text.encode(), **fields)
    status, _, found = client.send("POST", "/v1/files", data, {"content-type": kind})
    return status, json.loads(found)


def ids(client):
    """Those of all documents that the server has."""
    return [each["id"] for each in client.get("/v1/files")[1]["data"]]


def test_a_document_is_sent_asked_about_and_deleted(client):
    status, found = sent(client, "Old Valley.txt", valley(9), purpose="user_data")
    assert status == 200 and found["object"] == "file" and found["filename"] == "Old Valley.txt"
    name = found["model"]
    assert name == "old-valley" and found["bytes"] == len(valley(9))
    asked = client.ask(QUESTION, model=name)
    assert ANSWER in asked["choices"][0]["message"]["content"] and asked["model"] == name
    assert client.ask(QUESTION, model=found["id"])["model"] == name
    again = client.get(f"/v1/files/{found['id']}")[1]
    assert again["status"] == "processed" and again["kvchat"]["kv_bytes"] > 0
    assert found["id"] in ids(client)
    assert client.send("GET", f"/v1/files/{found['id']}/content")[2].decode() == valley(9)
    once_more = sent(client, "Old Valley.txt", valley(9))[1]
    assert once_more["id"] == found["id"], "the same document is not read twice"
    parts = [{"type": "file", "file": {"file_id": found["id"]}}, {"type": "text", "text": QUESTION}]
    by_id = client.ask(parts, model="demo")
    assert ANSWER in by_id["choices"][0]["message"]["content"]
    gone = json.loads(client.send("DELETE", f"/v1/files/{found['id']}")[2])
    assert gone == {"id": found["id"], "object": "file", "deleted": True}
    assert client.get(f"/v1/models/{name}")[0] == 404 and client.get(f"/v1/files/{name}")[0] == 404


def test_the_reading_is_told(client):
    data, kind = form("told.txt", valley(20).encode(), method="streamingllm", budget="50%")
    headers = {"content-type": kind, "accept": "text/event-stream"}
    status, got, data = client.send("POST", "/v1/files", data, headers)
    assert status == 200 and got["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in data.decode().split("\n\n") if line[:5] == "data:"]
    assert events[-1]["status"] == "processed"
    about = events[-1]["kvchat"]
    assert about["method"] == "streamingllm" and about["budget"] == "50%"
    assert about["kept_share"] == pytest.approx(0.5, abs=0.01)
    assert about["kv_bytes"] < 0.6 * about["full_bytes"]
    assert all(0 <= each["kvchat"].get("progress", 0) <= 1 for each in events)


def test_the_bytes_alone_with_a_name(client):
    headers = {"content-type": "application/octet-stream"}
    path = "/v1/files?filename=..%2F..%2Fetc%2Fpasswd.md"
    _, _, data = client.send("POST", path, valley(3).encode(), headers)
    found = json.loads(data)
    assert found["filename"] == "passwd.md" and found["model"] == "passwd"


@pytest.mark.parametrize(
    "fields, text, status",
    [
        ({}, "", 400),
        ({"method": "magic"}, "text", 400),
        ({"budget": "-5"}, "text", 400),
        ({"method": "full", "budget": "20%"}, "text", 400),
        ({"method": "adakv:window=oops"}, "text", 400),
    ],
)
def test_what_is_no_document_or_no_method_is_refused(client, fields, text, status):
    got, found = sent(client, "x.txt", text, **fields)
    assert got == status and found["error"]["type"] == "invalid_request_error"


def test_a_document_that_is_too_long_is_refused_with_numbers(client):
    files = ids(client)
    status, refused = sent(client, "long.txt", "word " * 60_000)
    assert status == 400 and refused["error"]["code"] == "context_length_exceeded"
    assert re.search(r"\d\d,\d{3} tokens", refused["error"]["message"])
    assert ids(client) == files


def test_one_that_is_longer_than_the_window_is_read_in_parts(tmp_path, book):
    with served(tmp_path, book, overflow="stream", ctx_size="700") as server:
        about = server.client.read()
        assert about["tokens"] > 700
        found = server.client.ask(QUESTION, max_tokens=10)
        assert found["usage"]["prompt_tokens"] > 700
        assert found["choices"][0]["message"]["content"]


def test_a_long_first_message_is_a_document(client):
    text = f"{valley(14)}\n\n{QUESTION}"
    reads = client.metric("documents_read_total")
    first, second = (client.ask(text, model="demo") for _ in range(2))
    assert ANSWER in first["choices"][0]["message"]["content"]
    assert first["choices"] == second["choices"] and first["model"] == "demo"
    details = [each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in (first, second)]
    assert details[0] == 0 and details[1] > 500
    assert client.metric("documents_read_total") == reads + 1
    other = client.ask(f"{valley(14)}\n\nWhat is the stone of Arvid Abbott?", model="demo")
    assert "ruby" in other["choices"][0]["message"]["content"]
    turns = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "Roofing."},
        {"role": "user", "content": "What is the stone of Arvid Abbott?"},
    ]
    status, found = client.post("/v1/chat/completions", {"model": "demo", "messages": turns})
    assert status == 200 and found["usage"]["prompt_tokens_details"]["cached_tokens"] > 500
    system = [{"role": "system", "content": valley(14)}, {"role": "user", "content": QUESTION}]
    found = client.post("/v1/chat/completions", {"model": "demo", "messages": system})[1]
    assert ANSWER in found["choices"][0]["message"]["content"]
    assert client.metric("documents_read_total") == reads + 1
    names = [each["id"] for each in client.get("/v1/models")[1]["data"]]
    assert not [name for name in names if "message" in name or "prompt" in name]


def test_a_short_first_message_is_none(client):
    reads = client.metric("documents_read_total")
    client.ask(f"{valley(2)}\n\n{QUESTION}", model="demo", max_tokens=2)
    assert client.metric("documents_read_total") == reads


def test_one_document_from_many_is_read_once(client):
    reads = client.metric("documents_read_total")
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: sent(client, "same.txt", valley(30)), range(8)))
        text = f"{valley(25)}\n\n{QUESTION}"
        answers = list(pool.map(lambda _: client.ask(text, model="demo"), range(8)))
    assert {status for status, _ in got} == {200} and len({each["id"] for _, each in got}) == 1
    client.read("same")
    assert len({str(each["choices"]) for each in answers}) == 1
    assert client.metric("documents_read_total") == reads + 2


def test_a_document_that_is_deleted_while_it_is_asked_about(server, client):
    """Who asks is answered; then nothing of it is left."""
    found = sent(client, "gone.txt", valley(9))[1]
    client.read("gone")
    with ThreadPoolExecutor(1) as pool:
        with held(server, waiting=1):
            asked = pool.submit(client.ask, QUESTION, model="gone")
            client.until(lambda: server.scheduler.waiting == 1)
            assert client.send("DELETE", f"/v1/files/{found['id']}")[0] == 200
        assert ANSWER in asked.result()["choices"][0]["message"]["content"]
    assert client.get(f"/v1/files/{found['id']}")[0] == 404
    assert not (server.settings_folder / f"{found['id']}.json").exists()


def test_a_document_that_is_deleted_while_it_is_read_is_read_no_further(server, client):
    reads = client.metric("documents_read_total")
    with held(server):
        found = sent(client, "long.txt", valley(100))[1]
        client.until(lambda: server.scheduler.reading == 2)
        assert client.send("DELETE", f"/v1/files/{found['id']}")[0] == 200
        again = sent(client, "long.txt", valley(100))[1]
        assert again["id"] == found["id"]
        client.send("DELETE", f"/v1/files/{found['id']}")
    client.until(lambda: not server.scheduler.reading)
    assert client.metric("documents_read_total") == reads
    assert not (server.settings_folder / f"{found['id']}.json").exists()


def test_one_that_is_sent_again_while_it_is_deleted_is_read(server, client):
    with held(server):
        found = sent(client, "twice.txt", valley(15))[1]
        client.until(lambda: server.scheduler.reading == 2)
        client.send("DELETE", f"/v1/files/{found['id']}")
        assert sent(client, "twice.txt", valley(15))[1]["id"] == found["id"]
    assert client.read("twice")["status"] == "processed"
    assert (server.settings_folder / f"{found['id']}.json").exists()


def test_documents_of_earlier_runs_come_back_from_disk(tmp_path):
    with served(tmp_path) as server:
        found = sent(server.client, "kept.txt", valley(8))[1]
        server.client.read("kept")
        answer = server.client.ask(QUESTION, model="kept")["choices"]
    [file] = (tmp_path / "served").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    (tmp_path / "served" / "file-000000000000000000000000.json").write_text("{broken")
    with served(tmp_path) as server:
        client = server.client
        assert ids(client) == [found["id"]]
        assert client.ask(QUESTION, model="kept")["choices"] == answer
        assert client.metric("documents_read_total") == 0
        assert client.metric("documents_restored_total") == 1
        assert client.read("kept")["restored"] is True
        client.send("DELETE", f"/v1/files/{found['id']}")
    assert not file.exists()


def test_pages_of_documents_of_earlier_runs_come_back(tmp_path):
    document = decode("a.txt", b"one\ftwo")
    earlier = documents.Served(f"file-{'0' * 24}", "a", document, sent=True, method="auto")
    documents.keep(tmp_path, earlier)
    [found] = documents.kept(tmp_path)
    assert (found.document.places, found.document.unit) == (document.places, "pages")


def test_without_a_prompt_cache_nothing_is_kept(tmp_path):
    with served(tmp_path, prompt_cache="off") as server:
        sent(server.client, "lost.txt", valley(3))
        server.client.read("lost")
    assert not (tmp_path / "served").exists() and not (tmp_path / "cache").exists()


def test_killed_and_started_again(tmp_path):
    """The program itself, and kill -9: what it had read is not read again."""
    book = tmp_path / "book.txt"
    book.write_text(valley(12), "utf-8")
    asked = [sys.executable, "-m", "kvchat", "serve", "-m", "demo", str(book), "--port", "0"]
    asked += ["--prompt-cache-dir", str(tmp_path / "cache"), "--threads", "1"]
    asked += ["--documents", str(tmp_path / "served"), "--prompt-cache", "on"]
    environment = os.environ | ONE_THREAD
    with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            client = Client(int(re.search(r":(\d+)/", process.stderr.readline())[1]))
            sent(client, "sent.txt", valley(9))
            for name in ("book", "sent"):
                client.read(name)
            answers = [client.ask(QUESTION, model=name)["choices"] for name in ("book", "sent")]
            saved = tmp_path / "cache"
            client.until(lambda: len(list(saved.glob("*.safetensors"))) == 2)
        finally:
            process.send_signal(signal.SIGKILL)
    with served(tmp_path, book) as server:
        for name, answer in zip(("book", "sent"), answers, strict=True):
            assert server.client.ask(QUESTION, model=name)["choices"] == answer
        assert server.client.metric("documents_read_total") == 0
        assert server.client.metric("documents_restored_total") == 2


def test_names_are_of_titles():
    taken = {"book", "book-2"}
    assert documents.slug("Book.txt", taken) == "book-3"
    assert documents.slug("Ä Ö/.md", set()) == "document"
    assert documents.slug(".hidden", set()) == "hidden"
    assert len(documents.slug("x" * 500, set())) == 60
