"""Many at once: nothing is lost, nothing is mixed, and it ends."""

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from tests.serve.conftest import held, valley
from tests.serve.test_documents import sent

FACT = re.compile(r"The (\w+) of (\w+ \w+) is (\w+)[.,]")
REQUESTS, CLIENTS = 200, 8
CHAT = "/v1/chat/completions"
KINDS = (*("whole", "stream", "gone") * 2, "several", "warm", "long")


def test_200_requests_of_8_clients(server, client):
    """Whole and streamed, several choices, about two documents and without one, behind long
    questions, some given up in between; every answer is that of its own question, and so are its
    sources."""
    sent(client, "other.txt", valley(20), method="streamingllm", budget="90%")
    client.read("other")
    facts = [each for each in FACT.findall(valley(12)) if each[0] != "colour"]
    asked = [f"What is the {thing} of {name}?" for thing, name, _ in facts]
    questions = [(model, question) for question in asked for model in ("valley", "other")]

    def of(choice):
        return choice["message"]["content"], str(choice["sources"])

    def answer(model, question, **more):
        return [of(each) for each in client.ask(question, model, sources=True, **more)["choices"]]

    alone = {each: answer(*each)[0] for each in questions}
    assert len(set(alone.values())) > 8
    draw = random.Random(5)
    plans = [(draw.choice(questions), draw.choice(KINDS), n) for n in range(REQUESTS)]

    def is_right(plan):
        (model, question), kind, number = plan
        body = {"model": model, "messages": [{"role": "user", "content": question}]}
        if kind == "whole":
            return answer(model, question) == [alone[model, question]]
        if kind == "several":
            return answer(model, question, n=2) == [alone[model, question]] * 2
        if kind == "stream":
            events = client.stream(CHAT, body | {"stream": True, "sources": True})
            pieces = (each["choices"][0]["delta"].get("content", "") for each in events[:-1])
            found = "".join(pieces), str(events[-2]["choices"][0]["sources"])
            return events[-1] == "[DONE]" and found == alone[model, question]
        if kind == "warm":
            more = {"temperature": 1.5, "seed": number, "max_tokens": 8, "model": "demo"}
            return client.post(CHAT, body | more)[0] == 200
        if kind == "long":
            return bool(client.ask("word " * 140 + question, model, max_tokens=3)["choices"])
        data = json.dumps(body | {"max_tokens": 500, "temperature": 2.0}).encode()
        head = {"content-type": "application/json"}
        with suppress(OSError):
            client.send("POST", CHAT, data, head, timeout=0.005)
        return True

    names = "answers_failed_total", "decode_steps_total", "completion_tokens_total"
    before = [client.metric(name) for name in names]
    with ThreadPoolExecutor(CLIENTS) as pool:
        with held(server, waiting=CLIENTS):
            each = [pool.submit(is_right, plan) for plan in plans]
        right = [one.result(120) for one in each]
    assert all(right), [plan for plan, good in zip(plans, right, strict=True) if not good]
    client.until(lambda: client.metric("answering") + client.metric("waiting") == 0)
    failed, steps, tokens = (client.metric(n) - b for n, b in zip(names, before, strict=True))
    assert failed == 0 and tokens > steps, "they were decoded together"
