"""OpenAI's interface over one document: whole, in pieces, with probabilities; what is refused."""

import json
import math

import pytest

from kvchat.engine.text.chat_template import Dialogue
from kvchat.serve import requests
from kvchat.serve.refusals import Refusal

QUESTION, ANSWER = "What is the stone of Arvid Abbott?", "ruby"
CHAT = "/v1/chat/completions"


def body(**more):
    return {"model": "valley", "messages": [{"role": "user", "content": QUESTION}]} | more


def test_an_answer_about_a_document_of_the_start(client):
    found = client.ask(QUESTION)
    choice, usage = found["choices"][0], found["usage"]
    assert ANSWER in choice["message"]["content"] and choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "stop" and found["object"] == "chat.completion"
    assert found["model"] == "valley" and found["id"].startswith("chatcmpl-")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    document = usage["prompt_tokens_details"]["cached_tokens"]
    assert 100 < document < usage["prompt_tokens"] < document + 30


def test_a_stream_says_the_same(client):
    whole = client.ask(QUESTION)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *events, end = client.stream(CHAT, body(**options))
    *pieces, last, usage = events
    assert end == "[DONE]" and {each["object"] for each in events} == {"chat.completion.chunk"}
    assert len({each["id"] for each in events}) == 1
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(each["choices"][0]["delta"]["content"] for each in pieces)
    assert text == whole["choices"][0]["message"]["content"]
    assert last["choices"][0] | {"delta": {}} == last["choices"][0]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert all("usage" not in each for each in client.stream(CHAT, body(stream=True))[:-1])


def test_models_are_the_model_and_its_documents(client):
    status, found = client.get("/v1/models")
    assert status == 200 and [each["id"] for each in found["data"]] == ["demo", "valley"]
    about = found["data"][1]["kvchat"]
    assert about["status"] == "processed" and about["kept_share"] == 1.0
    assert about["kv_bytes"] > 0 and about["tokens"] > 100
    assert client.get("/v1/models/valley") == (200, found["data"][1])
    assert client.get("/v1/models/nobody")[0] == 404


def test_logprobs(client):
    found = client.ask(QUESTION, logprobs=True, top_logprobs=3)
    content = found["choices"][0]["logprobs"]["content"]
    assert len(content) == found["usage"]["completion_tokens"]
    for each in content:
        top = each["top_logprobs"]
        assert len(top) == 3 and top[0]["logprob"] == each["logprob"] <= 0  # greedy
        assert sum(math.exp(other["logprob"]) for other in top) <= 1.0001
        assert bytes(each["bytes"]).decode() == each["token"]
    text = "".join(each["token"] for each in content[:-1])  # the last one ends the answer
    assert text == found["choices"][0]["message"]["content"]
    plain = client.ask(QUESTION, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert [each["logprob"] for each in plain] == pytest.approx([e["logprob"] for e in content])
    assert plain[0]["top_logprobs"] == []
    events = client.stream(CHAT, body(stream=True, logprobs=True, top_logprobs=2))
    drawn = [e for each in events[:-1] if each["choices"]
             for e in (each["choices"][0]["logprobs"] or {"content": []})["content"]]  # fmt: skip
    assert [each["token"] for each in drawn] == [each["token"] for each in content]


def test_what_ends_an_answer(client):
    cut = client.ask(QUESTION, max_tokens=3)
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 3
    assert client.ask(QUESTION, max_completion_tokens=2)["usage"]["completion_tokens"] == 2
    stopped = client.ask(QUESTION, stop=[" Arvid"])
    assert stopped["choices"][0]["message"]["content"] == "The stone of"
    assert stopped["choices"][0]["finish_reason"] == "stop"


def test_drawing_is_by_seed(client):
    warm = {"temperature": 2.0, "max_tokens": 12}
    texts = [client.ask(QUESTION, seed=seed, **warm)["choices"][0]["message"]["content"]
             for seed in (1, 1, 2, 3)]  # fmt: skip
    assert texts[0] == texts[1] and len(set(texts)) > 1
    cold = client.ask(QUESTION, temperature=2.0, top_p=0)["choices"][0]["message"]["content"]
    assert cold == client.ask(QUESTION)["choices"][0]["message"]["content"]


def test_turns_are_those_of_a_chat(client, server):
    """What comes before a question is fed as a chat feeds it."""
    first = client.ask(QUESTION)["choices"][0]["message"]["content"]
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first},
        {"role": "user", "content": [{"type": "text", "text": "And the trade of Felix Irons?"}]},
    ]
    status, found = client.post(CHAT, {"model": "valley", "messages": messages})
    assert status == 200 and "roofing" in found["choices"][0]["message"]["content"]
    held = client.get("/v1/models/valley")[1]["kvchat"]["tokens"]
    dialogue = Dialogue(server.chat.session.dialogue.tokenizer)
    answer = dialogue.tokenizer.encode([(first, False)], continues=True)
    fed = [*dialogue.first(QUESTION), *answer, *dialogue.following("And the trade of Felix Irons?")]
    assert dialogue.conversation([(QUESTION, first)], "And the trade of Felix Irons?") == fed
    assert found["usage"]["prompt_tokens"] == held + len(fed)


def test_the_model_without_a_document(client):
    found = client.ask("Who?", model="demo", max_tokens=4)
    assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert found["usage"]["prompt_tokens"] < 30 and found["model"] == "demo"


def test_completions(client):
    asked = {"model": "demo", "prompt": "The stone of Arvid", "max_tokens": 4, "logprobs": 2}
    status, found = client.post("/v1/completions", asked)
    assert status == 200 and found["object"] == "text_completion"
    assert found["choices"][0]["finish_reason"] in ("length", "stop")
    assert len(found["choices"][0]["logprobs"]["tokens"]) == found["usage"]["completion_tokens"]
    events = client.stream("/v1/completions", asked | {"stream": True, "logprobs": None})
    text = "".join(each["choices"][0]["text"] for each in events[:-1])
    assert text == found["choices"][0]["text"]


@pytest.mark.parametrize(
    "changes, status, param",
    [
        ({"model": "nobody"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hello"}, 400, "messages"),
        ({"messages": [1]}, 400, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, None),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0]"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"n": 0}, 400, "n"),
        ({"n": 17}, 400, "n"),
        ({"tools": [{"type": "function"}], "tool_choice": "auto"}, 400, "tools"),
        ({"tool_choice": "required"}, 400, "tool_choice"),
        ({"modalities": ["text", "audio"]}, 400, "modalities"),
        ({"temperature": math.nan}, 400, "temperature"),
        ({"top_p": math.inf}, 400, "top_p"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"temperature": True}, 400, "temperature"),
        ({"top_p": 1.5}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 2.5}, 400, "max_tokens"),
        ({"stop": [""]}, 400, "stop"),
        ({"stop": ["x"] * 17}, 400, "stop"),
        ({"stream": "yes"}, 400, "stream"),
        ({"logit_bias": {"five": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"5": 101}}, 400, "5"),
        ({"logit_bias": {"999999": 1}}, 400, "logit_bias"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, 400, "logit_bias"),
        ({"logit_bias": [5]}, 400, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        ({"response_format": {"type": "yaml"}}, 400, "response_format"),
        ({"frequency_penalty": 2.5}, 400, "frequency_penalty"),
        ({"presence_penalty": "much"}, 400, "presence_penalty"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client, changes, status, param):
    got, found = client.post(CHAT, body(**changes))
    error = found["error"]
    assert got == status and set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] in (param, param.partition(".")[0])


def test_what_means_nothing_is_taken(client):
    more = {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "n": 1,
        "frequency_penalty": 0,
        "user": "me",
        "store": False,
    }
    more |= {"logit_bias": {}, "response_format": {"type": "text"}, "tool_choice": "none"}
    more |= {"functions": [{"name": "f"}], "function_call": "none", "max_tokens": -1, "seed": None}
    more |= {"stop": None, "stream": None, "stream_options": None, "top_logprobs": None}
    more |= {"modalities": ["text"], "prediction": {"type": "content", "content": "x"}}
    more |= {"service_tier": "auto", "metadata": {"a": "b"}, "of_tomorrow": [1, {"x": None}]}
    assert ANSWER in client.ask(QUESTION, **more)["choices"][0]["message"]["content"]


def test_a_question_that_is_too_long_is_refused_with_numbers(client):
    words = " word" * 40_000
    status, found = client.post(CHAT, body(messages=[{"role": "user", "content": words}]))
    assert status == 400 and found["error"]["code"] == "context_length_exceeded"
    assert "32,768" in found["error"]["message"]


def test_an_answer_in_a_given_form(client):
    schema = {"type": "object", "properties": {"stone": {"enum": ["ruby", "jade"]}}}
    schema |= {"required": ["stone"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "stone", "schema": schema}}
    text = client.ask(QUESTION, response_format=form)["choices"][0]["message"]["content"]
    assert json.loads(text) == {"stone": "ruby"}
    found = client.ask(QUESTION, response_format={"type": "json_object"}, max_tokens=60)
    assert found["choices"][0]["message"]["content"].startswith("{")
    found = client.ask(QUESTION, grammar='start: "jade" | "opal"')
    assert found["choices"][0]["message"]["content"] in ("jade", "opal")
    assert found["choices"][0]["finish_reason"] == "stop"
    for bad in ({"type": "nope"}, {"$ref": "file:///etc/passwd"}):
        form = {"type": "json_schema", "json_schema": {"schema": bad}}
        status, found = client.post(CHAT, body(response_format=form))
        assert status == 400 and "passwd" not in found["error"]["message"].split("'")[0]


def test_other_paths(client):
    assert client.post("/v1/embeddings", {"input": "x"})[0] == 400
    unknown = [("GET", "/v1/nothing", 404), ("GET", CHAT, 405), ("POST", "/v1/responses", 404)]
    for path in ("/api/tags", "/api/version", "/models", "/v1", "/favicon.ico"):
        unknown.append(("GET", path, 404))
    for method, path, status in unknown:
        got, _, data = client.send(method, path)
        assert got == status and json.loads(data)["error"]["code"] == "unknown_url"
    assert client.get("/health") == (200, {"status": "ok"})


def test_addresses_with_a_slash_more(client):
    """As programs make them of a base that ends with one."""
    for path in ("/v1/models/", "//v1/models", "/v1//models"):
        assert client.get(path) == client.get("/v1/models")
    assert client.get("/v1/models/valley/")[0] == 200
    assert client.post(CHAT + "/", body(max_tokens=1))[0] == 200
    for path in ("/", "/v1/models", "/health"):
        status, headers, data = client.send("HEAD", path)
        assert status == 200 and data == b"" and int(headers["content-length"]) > 0
    assert client.send("OPTIONS", CHAT)[0] == 405


def test_metrics(client):
    before = client.metric("answers_total"), client.metric("completion_tokens_total")
    client.ask(QUESTION)
    client.until(lambda: client.metric("answers_total") == before[0] + 1)
    assert client.metric("completion_tokens_total") > before[1]
    assert client.metric("answering") == 0 and client.metric("documents") >= 1
    _, headers, data = client.send("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    names = [line.split()[2] for line in data.decode().splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) > 15
    assert b'kvchat_requests_total{path="/v1/chat/completions",status="200"}' in data


def test_halves_of_characters_are_replaced():
    asked = requests.chat({"messages": [{"role": "user", "content": "a\ud800b"}]})
    assert asked.question == "a?b"


@pytest.mark.parametrize("data", [b"\xff{}", b"{", b"[]", b"3", b"", b'{"a":' * 100_000])
def test_bodies_that_are_no_object(data):
    with pytest.raises(Refusal) as caught:
        requests.read_json(data)
    assert caught.value.status == 400
