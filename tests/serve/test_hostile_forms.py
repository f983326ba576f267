"""Forms that are meant to take for ever: refused in time, and others are answered meanwhile."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvchat.serve import forms
from tests.serve.test_api import CHAT, QUESTION, body

LETTERS = "abcdefghijklmnopqrst"
ENDLESS = {"allOf": [{"type": "string", "pattern": f".*{each}.*"} for each in LETTERS]}


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def asked(client, schema):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return client.post(CHAT, body(response_format=form, max_tokens=8))


def test_one_that_compiles_for_ever_is_refused(client, monkeypatch):
    monkeypatch.setattr(forms, "SECONDS", 1)
    status, found = asked(client, ENDLESS)
    assert status == 400 and found["error"]["param"] == "response_format"
    monkeypatch.setattr(forms.FormRoom, "_problem", None)
    assert asked(client, ENDLESS) == (status, found), "it is not tried again"


def test_others_are_answered_while_one_is_compiled(client, monkeypatch):
    begun, done, problem = threading.Event(), threading.Event(), forms.FormRoom._problem

    async def slowly(self, kind, text):
        begun.set()
        while not done.is_set():
            await asyncio.sleep(0.01)
        return await problem(self, kind, text)

    with monkeypatch.context() as patched, ThreadPoolExecutor(1) as pool:
        patched.setattr(forms.FormRoom, "_problem", slowly)
        late = pool.submit(asked, client, {"enum": ["ruby"]})
        assert begun.wait(60)
        assert client.ask(QUESTION)["choices"]
        done.set()
        status, found = late.result()
    assert status == 200 and found["choices"][0]["message"]["content"] == '"ruby"'


@pytest.mark.parametrize(
    "schema",
    [
        nested(400),
        {"type": "string", "pattern": "(.{0,1000}){0,1000}"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"$ref": "file:///etc/passwd"},
        {"enum": [f"value{number}" for number in range(20_000)]},
        {"const": "\ud800"},
        {"type": ["what"]},
    ],
    ids=["nested", "regex", "loop", "file", "large", "half", "kind"],
)
def test_those_that_cannot_be_used_are_refused(client, schema):
    status, found = asked(client, schema)
    assert status == 400 and found["error"]["type"] == "invalid_request_error"
    assert "passwd" not in json.dumps(found) or "not present" in found["error"]["message"]


def test_patterns_that_go_round(client):
    for pattern in ("^(a+)+$", "((a|b|ab)*){0,500}c", "(a{0,999}){0,999}"):
        status, _ = asked(client, {"type": "string", "pattern": pattern})
        assert status in (200, 400)
    assert client.post(CHAT, body(grammar='start: start start | "a"', max_tokens=5))[0] == 200
