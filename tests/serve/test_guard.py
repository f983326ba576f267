"""Who may ask: this machine, or who has the key; pages of other sites only where they are named."""

import json

import pytest

from kvchat.serve.settings import Settings
from tests.serve.conftest import served
from tests.serve.test_faults import CHAT
from tests.support.errors import refused


def test_requests_of_other_sites_are_refused(client):
    """A page of another site, and a name that has been pointed at this machine."""
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"host": "evil.example"},
        {"host": f"evil.example:{client.port}"},
    ):
        status, found = client.post(CHAT, {"model": "valley", "messages": []}, **headers)
        assert status == 403 and found["error"]["type"] == "permission_error"
    own = {"origin": f"http://127.0.0.1:{client.port}", "sec-fetch-site": "same-origin"}
    assert client.post(CHAT, {"model": "valley", "messages": []}, **own)[0] == 400
    assert client.send("GET", "/", headers={"sec-fetch-site": "cross-site"})[0] == 200


def test_pages_that_may_ask(tmp_path):
    """One origin that the person has named, and no other; with a key it needs the key too."""
    friend, body = "http://localhost:3000", {"messages": [{"role": "user", "content": "Who?"}]}
    with served(tmp_path, origins=[friend], api_key="secret-key") as server:
        client, key = server.client, {"authorization": "Bearer secret-key"}
        ask = {"access-control-request-method": "POST",
               "access-control-request-headers": "authorization,content-type"}  # fmt: skip
        status, headers, _ = client.send("OPTIONS", CHAT, headers={"origin": friend} | ask)
        assert status == 204 and headers["access-control-allow-origin"] == friend
        assert headers["access-control-allow-headers"] == "authorization,content-type"
        assert "POST" in headers["access-control-allow-methods"]
        own = {"origin": friend, "sec-fetch-site": "same-site", "content-type": "application/json"}
        data = json.dumps(body | {"max_tokens": 1}).encode()
        status, headers, _ = client.send("POST", CHAT, data, own | key)
        assert status == 200 and headers["access-control-allow-origin"] == friend
        assert headers["vary"] == "origin"
        assert client.send("POST", CHAT, data, own)[0] == 401
        for other in ("http://localhost:3001", "https://localhost:3000", "http://localhost:3000.x"):
            status, headers, _ = client.send("OPTIONS", CHAT, headers={"origin": other} | ask)
            assert status == 403 and "access-control-allow-origin" not in headers
            assert client.send("POST", CHAT, data, own | key | {"origin": other})[0] == 403


@pytest.mark.parametrize("origin", ["*", "http://*", "localhost:3000", "http://a/b", ""])
def test_an_origin_is_one(origin):
    with refused("usage"):
        Settings(origins=(origin,)).require_safe()


def test_a_key(tmp_path, book):
    with served(tmp_path, book, api_key="secret-key") as server:
        client = server.client
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic c2VjcmV0"}):
            status, found = client.get("/v1/models", **headers)
            assert status == 401 and found["error"]["code"] == "invalid_api_key"
            assert client.get("/metrics", **headers)[0] == 401
        assert client.get("/v1/models", authorization="Bearer secret-key")[0] == 200
        assert client.get("/v1/models", **{"x-api-key": "secret-key"})[0] == 200
        assert client.get("/health") == (200, {"status": "ok"})
        assert client.send("GET", "/")[0] == 200


def test_a_server_that_others_reach_needs_a_key(monkeypatch):
    monkeypatch.delenv("KVCHAT_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with refused("usage"):
            Settings(host=host).require_safe()
        Settings(host=host, api_key="long enough").require_safe()
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        Settings(host=host).require_safe()
    with refused("usage"):
        Settings(api_key="short").require_safe()
    monkeypatch.setenv("KVCHAT_API_KEY", "from the environment")
    Settings(host="0.0.0.0").require_safe()
