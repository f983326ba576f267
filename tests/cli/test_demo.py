"""The bundled model: transformers reads the same answers from it, and the demo passes."""

import json
import re

import torch
from transformers import AutoModelForCausalLM

from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from tests.support.program import DEMO, SAMPLE, kvchat


def test_demo_reads_answers_and_marks():
    done = kvchat("demo")
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
