"""Several answers to one request, and tokens that are made likelier or less."""

import json

from tests.serve.test_api import CHAT, QUESTION, body


def test_several_choices(client):
    """As if each had been asked for by itself, with seeds that follow one another."""
    warm = {"temperature": 1.5, "max_tokens": 8}
    alone = [client.ask(QUESTION, seed=seed, **warm) for seed in (5, 6, 7)]
    found = client.ask(QUESTION, n=3, seed=5, sources=True, logprobs=True, **warm)
    assert [each["index"] for each in found["choices"]] == [0, 1, 2]
    for own, one in zip(found["choices"], alone, strict=True):
        assert own["message"] == one["choices"][0]["message"]
        assert own["logprobs"]["content"] and isinstance(own["sources"], list)
    tokens = sum(one["usage"]["completion_tokens"] for one in alone)
    assert found["usage"]["completion_tokens"] == tokens
    assert found["usage"]["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *events, usage, end = client.stream(CHAT, body(n=3, seed=5, **warm, **options))
    texts, reasons = [""] * 3, [None] * 3
    for each in events:
        [choice] = each["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
    assert texts == [each["message"]["content"] for each in found["choices"]]
    assert reasons == [each["finish_reason"] for each in found["choices"]] and end == "[DONE]"
    assert usage["usage"]["completion_tokens"] == tokens
    schema = {"type": "object", "properties": {"stone": {"enum": ["ruby", "jade"]}}}
    schema |= {"required": ["stone"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    for each in client.ask(QUESTION, n=2, temperature=2.0, response_format=form)["choices"]:
        assert json.loads(each["message"]["content"])["stone"] in ("ruby", "jade")


def test_tokens_are_made_likelier_or_less(client, server):
    """A bias bans or forces a token; penalties keep what was said from coming again."""
    plain = client.ask(QUESTION)["choices"][0]["message"]["content"]
    tokenizer = server.chat.session.dialogue.tokenizer
    first = tokenizer.encode([(plain, False)], continues=True)[0]
    other = client.ask(QUESTION, logit_bias={str(first): -100})["choices"][0]["message"]["content"]
    assert other and not other.startswith(plain.split()[0])
    forced = client.ask(QUESTION, logit_bias={str(first): 100}, max_tokens=5, logprobs=True)
    drawn = forced["choices"][0]["logprobs"]["content"]
    assert len({each["token"] for each in drawn}) == 1, "and nothing else"
    again = {"logit_bias": {str(first): 40}, "max_tokens": 40, "logprobs": True}
    again["ignore_eos"] = True

    def counts(**penalty):
        found = client.ask(QUESTION, **again, **penalty)["choices"][0]["logprobs"]["content"]
        return sum(each["token"] == drawn[0]["token"] for each in found)

    rising = counts(), counts(frequency_penalty=1.0), counts(frequency_penalty=2.0)
    assert rising[0] > rising[1] > rising[2] > 1
    assert counts(presence_penalty=2.0) == rising[0], "40 is more than 2"
    assert client.ask(QUESTION, presence_penalty=0.0, frequency_penalty=0, logit_bias=None)
