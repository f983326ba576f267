"""Many at once: nothing is lost, nothing is mixed, and it ends."""

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from tests.serve.conftest import held, valley

FACT = re.compile(r"The (\w+) of (\w+ \w+) is (\w+)[.,]")
REQUESTS, CLIENTS = 200, 8


def test_200_requests_of_8_clients(server, client):
    """Whole and streamed, about a document and without one, some given up in between; every answer
    is that of its own question."""
    facts = [each for each in FACT.findall(valley(12)) if each[0] != "colour"]
    questions = [f"What is the {thing} of {name}?" for thing, name, _ in facts]
    alone = {each: client.ask(each)["choices"][0]["message"]["content"] for each in questions}
    assert len(set(alone.values())) > 4
    draw = random.Random(5)
    plans = [(draw.choice(questions), draw.choice(["whole", "stream", "warm", "gone"]), n)
             for n in range(REQUESTS)]  # fmt: skip

    def asked(plan):
        question, kind, number = plan
        body = {"model": "valley", "messages": [{"role": "user", "content": question}]}
        if kind == "whole":
            return client.ask(question)["choices"][0]["message"]["content"] == alone[question]
        if kind == "stream":
            events = client.stream("/v1/chat/completions", body | {"stream": True})
            pieces = (each["choices"][0]["delta"].get("content", "") for each in events[:-1])
            return events[-1] == "[DONE]" and "".join(pieces) == alone[question]
        if kind == "warm":
            more = {"temperature": 1.5, "seed": number, "max_tokens": 8, "model": "demo"}
            return client.post("/v1/chat/completions", body | more)[0] == 200
        data = json.dumps(body | {"max_tokens": 500, "temperature": 2.0}).encode()
        head = {"content-type": "application/json"}
        with suppress(OSError):
            client.send("POST", "/v1/chat/completions", data, head, timeout=0.005)
        return True

    names = "answers_failed_total", "decode_steps_total", "completion_tokens_total"
    before = [client.metric(name) for name in names]
    with ThreadPoolExecutor(CLIENTS) as pool:
        with held(server, waiting=CLIENTS):
            each = [pool.submit(asked, plan) for plan in plans]
        right = [one.result(120) for one in each]
    assert all(right), [plan for plan, good in zip(plans, right, strict=True) if not good]
    client.until(lambda: client.metric("answering") + client.metric("waiting") == 0)
    failed, steps, tokens = (client.metric(n) - b for n, b in zip(names, before, strict=True))
    assert failed == 0 and tokens > steps, "they were decoded together"
