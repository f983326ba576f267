"""What an answer is from: the passages that a chat names, for each of several askers at once."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

import kvchat
from kvchat.engine import attribution
from kvchat.serve import citing
from tests.serve.conftest import held, valley

QUESTION = "What is the stone of Arvid Abbott?"
CHAT = "/v1/chat/completions"
FACT = re.compile(r"The (\w+) of (\w+ \w+) is \w+[.,]")


def questions():
    facts = [each for each in FACT.findall(valley(12)) if each[0] != "colour"]
    return list(dict.fromkeys(f"What is the {thing} of {name}?" for thing, name in facts))[:6]


def cited(client, question, **more):
    return client.ask(question, sources=True, **more)["choices"][0]["sources"]


def places(found):
    return [(each["start"], each["end"], each["label"]) for each in found]


@pytest.fixture(scope="module")
def told(book):
    """What a chat names for each question, each behind the ones before."""
    with kvchat.open("demo", book, prompt_cache="off", threads=1) as chat:
        return [
            (chat.ask(question).text, [vars(source) for source in chat.sources])
            for question in questions()[:3]
        ]


def test_sources_are_those_of_a_chat(client, told):
    messages = []
    for question, (answer, wanted) in zip(questions(), told, strict=False):
        messages.append({"role": "user", "content": question})
        status, found = client.post(CHAT, {"model": "valley", "messages": messages,
                                           "sources": True})  # fmt: skip
        choice = found["choices"][0]
        assert status == 200 and choice["message"]["content"] == answer
        assert places(choice["sources"]) == places(wanted) and wanted
        for own, source in zip(choice["sources"], wanted, strict=True):
            assert own["weight"] == pytest.approx(source["weight"], abs=0.01)
        messages.append({"role": "assistant", "content": answer})


def test_offsets_are_those_of_the_content(client):
    found = cited(client, QUESTION)
    assert set(found[0]) == {"document", "file_id", "start", "end", "label", "text", "weight"}
    text = client.send("GET", f"/v1/files/{found[0]['file_id']}/content")[2].decode()
    for each in found:
        assert text[each["start"] : each["end"]] == each["text"]
        assert 0 < each["weight"] <= 1
    assert "Arvid Abbott" in found[0]["text"] and found[0]["document"] == "valley.txt"
    events = client.stream(CHAT, {"model": "valley", "stream": True, "sources": True,
                                  "messages": [{"role": "user", "content": QUESTION}]})  # fmt: skip
    assert events[-2]["choices"][0]["sources"] == found
    assert not [each for each in events[:-2] if "sources" in each["choices"][0]]


def test_each_of_several_askers_has_its_own(server, client):
    some = questions()[:4]
    alone = [places(cited(client, each)) for each in some]
    assert len({str(each) for each in alone}) > 2
    steps, tokens = client.metric("decode_steps_total"), client.metric("completion_tokens_total")
    with ThreadPoolExecutor(4) as pool:
        with held(server, waiting=4):
            asked = [pool.submit(cited, client, question) for question in some]
        assert [places(each.result()) for each in asked] == alone
    steps = client.metric("decode_steps_total") - steps
    assert client.metric("completion_tokens_total") - tokens > 2 * steps


def test_who_does_not_ask_is_told_none(client):
    assert "sources" not in client.ask(QUESTION)["choices"][0]
    assert cited(client, "Who?", model="demo", max_tokens=3) == [], "there is no document"
    assert client.post(CHAT, {"model": "valley", "messages": [], "sources": 1})[0] == 400


def test_a_long_answer_keeps_few_queries(client, monkeypatch):
    """Of 300 tokens those alone that will be looked at."""
    most, every = [], citing.Cited.push

    def push(self, token, is_thought):
        every(self, token, is_thought)
        most.append(max(len(each.slots) for each in self._kept))

    monkeypatch.setattr(citing.Cited, "push", push)
    cited(client, QUESTION, max_tokens=300, temperature=50, ignore_eos=True, seed=1)
    assert len(most) == 300 and max(most) <= attribution.TOKENS + 1
