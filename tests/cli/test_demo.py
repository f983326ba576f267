"""The bundled model: transformers reads the same answers from it, and the demo passes.

The second act, which needs another model, runs in `tests/real`.
"""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvchat.cli import demonstration_chat
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from tests.support.program import DEMO, SAMPLE, kvchat


def test_demo_reads_answers_and_marks():
    done = kvchat("demo", "--act", "1")
    out = done.stdout.decode()
    questions = SAMPLE.with_suffix(".jsonl").read_text().splitlines()
    assert done.returncode == 0, done.stderr
    assert len(questions) >= 12
    scores = re.findall(rf"(\d+) of {len(questions)} right", out)
    full, kvzip, blind, in_view = map(int, scores)
    assert full >= 10
    assert min(kvzip, in_view) > blind
    assert b"freed" in done.stderr


def test_answers_equal_those_of_transformers():
    pairs = [json.loads(line) for line in SAMPLE.with_suffix(".jsonl").read_text().splitlines()]
    text = SAMPLE.read_text()
    asked = [pair["question"] for pair in pairs[:4]]
    prompts = [part for question in asked for part in ("-p", question)]
    ours = kvchat(str(SAMPLE), "--method", "full", "--temp", "0", "-q", *prompts)
    dialogue = Dialogue(Tokenizer.load(DEMO))
    model = AutoModelForCausalLM.from_pretrained(DEMO)
    for question, answer in zip(asked, ours.stdout.decode().splitlines(), strict=True):
        ids = torch.tensor([dialogue.document(text) + dialogue.first(question)])
        with torch.no_grad():
            wanted = model.generate(ids, max_new_tokens=40, do_sample=False)
        assert answer == dialogue.tokenizer.decode(wanted[0, ids.shape[1] :].tolist())


def test_a_second_act_without_its_model_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(demonstration_chat, "MODEL", "smollm2-nowhere")
    assert demonstration_chat.run(1) == 0
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("kvchat models pull smollm2-nowhere") == 1


def test_answers_of_the_second_sample_are_in_it():
    sample = SAMPLE.with_name(f"{demonstration_chat.SAMPLE}.txt")
    pairs = [json.loads(line) for line in sample.with_suffix(".jsonl").read_text().splitlines()]
    text = sample.read_text()
    assert len(pairs) == 5
    assert all(demonstration_chat.is_right(text, pair["answer"]) for pair in pairs)


@pytest.mark.parametrize(
    "text, right",
    [
        ("There are 2,300 puffins.", True),
        ("It is 2,300.", True),
        ("The number is 2.", False),
        ("There are 12,300 puffins.", False),
        ("There are 2,300,000 of them, or 2,300.5.", False),
        ("There are 42,300x.", False),
    ],
)
def test_a_number_is_right_as_a_whole(text, right):
    assert demonstration_chat.is_right(text, "2,300") is right
