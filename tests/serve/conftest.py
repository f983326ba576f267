"""A server in this process, over the bundled model and a short document."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from types import SimpleNamespace

import pytest

from kvchat.chat.open import open_chat
from kvchat.chat.prepare import prepare
from kvchat.serve import run
from kvchat.serve.settings import CHAT, Settings
from kvchat.settings.config import Config, settle
from kvchat.settings.option import read_all
from kvchat.terminal.screen import Screen
from tests.support.program import SAMPLE


def valley(parts: int) -> str:
    """The beginning of the sample."""
    return "\n\n".join(SAMPLE.read_text("utf-8").split("\n\n")[:parts])


class Client:
    """Plain HTTP, one connection per request."""

    def __init__(self, port: int):
        self.port = port

    def send(self, method, path, body=None, headers=None, timeout=60):
        """Status, headers, bytes."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def get(self, path, **headers):
        """Status and JSON."""
        status, _, data = self.send("GET", path, headers=headers)
        return status, json.loads(data)

    def post(self, path, found, **headers):
        """Status and JSON; `found` is what is sent, as JSON unless it is bytes."""
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        headers = {"content-type": "application/json"} | headers
        status, _, data = self.send("POST", path, data, headers)
        return status, json.loads(data)

    def ask(self, question, model="valley", **more):
        """The body of an answer."""
        asked = {"model": model, "messages": [{"role": "user", "content": question}]} | more
        status, found = self.post("/v1/chat/completions", asked)
        assert status == 200, found
        return found

    def stream(self, path, found):
        """The events of a stream, parsed; the last is [DONE]."""
        headers = {"content-type": "application/json"}
        status, _, data = self.send("POST", path, json.dumps(found).encode(), headers)
        assert status == 200, data
        lines = [line[6:] for line in data.decode().split("\n\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    def metric(self, name):
        """A number of /metrics."""
        text = self.send("GET", "/metrics")[2].decode()
        lines = (line.split() for line in text.splitlines())
        return next(float(value) for key, value, *_ in lines if key == f"kvchat_{name}")

    def until(self, done, seconds=30.0):
        """Wait until `done()`; what it gives."""
        end = time.monotonic() + seconds
        while not (found := done()):
            assert time.monotonic() < end, "it does not come"
            time.sleep(0.01)
        return found

    def read(self, name="valley"):
        """Wait until a document is read; what is known of it."""

        def about():
            found = self.get(f"/v1/models/{name}")[1]["kvchat"]
            return found if found["status"] in ("processed", "error") else None

        return self.until(about)


@contextmanager
def served(folder, *files, **given):
    """A server that runs; its client, library and scheduler."""
    named = {"model": "demo", "files": [str(file) for file in files] or None}
    named |= {"prompt_cache": "on", "prompt_cache_dir": str(folder / "cache")}
    named |= {"served": str(folder / "served"), "port": "0", "threads": "1"} | given
    settings = read_all(Settings, named)
    options = settle({name: named.get(name) for name in CHAT}, Config(folder), {})
    screen = Screen(quiet=True, plain=True)
    prepared = prepare(options, screen, piped=False)
    chat = open_chat(replace(prepared, files=[], options=replace(options, files=())), screen)
    app = run.application(chat, settings, prepared.files, screen)
    routes = app.app.routes[0].endpoint.__self__
    listening = run.listen(settings)
    server = run.server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    client = Client(listening.getsockname()[1])
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield SimpleNamespace(
            client=client, server=server, chat=chat, settings=settings, app=app,
            settings_folder=folder / "served", scheduler=routes.scheduler, library=routes.library,
            files=routes.files,
            port=client.port, url=f"http://127.0.0.1:{client.port}",
        )  # fmt: skip
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        chat.cache.__exit__(None, None, None)
        assert not thread.is_alive()


@contextmanager
def held(server, waiting=0):
    """The engine does nothing meanwhile; then as many requests wait, and go on together."""
    begun, done = threading.Event(), threading.Event()

    def work():
        begun.set()
        assert done.wait(60)
        yield

    server.scheduler.read(work())
    assert begun.wait(60)
    try:
        yield
        server.client.until(lambda: server.scheduler.waiting >= waiting)
    finally:
        done.set()


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """Where a server keeps what it keeps."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="package")
def book(folder):
    """A document of some hundred tokens."""
    path = folder / "valley.txt"
    path.write_text(valley(12), "utf-8")
    return path


@pytest.fixture(scope="package")
def server(folder, book):
    """A server with one document."""
    with served(folder, book) as found:
        found.client.read()
        yield found


def settled(server):
    """Wait until nothing is read, fed or written any more."""
    scheduler, library = server.scheduler, server.library
    server.client.until(
        lambda: not (
            server.files._tasks or library._reading or scheduler.reading
            or scheduler.busy or scheduler.waiting
        )
    )  # fmt: skip


@pytest.fixture(autouse=True)
def as_it_was(request):
    """What a test leaves is over before the next one: the shared server has its one document."""
    yield
    if "server" not in request.fixturenames:
        return
    server = request.getfixturevalue("server")
    settled(server)
    for each in server.client.get("/v1/files")[1]["data"]:
        if each["model"] != "valley":
            server.client.send("DELETE", f"/v1/files/{each['id']}")


@pytest.fixture
def client(server):
    """Plain HTTP to it."""
    return server.client
