"""Thoughts in one shot: `-p` prints the answer alone, JSON has both."""

import json

import pytest

from tests.support.forked import kvchat
from tests.support.program import DEMO

THINKS = "At sea.\n</think>\n\nShips.<|im_end|>"
OPENS = """
{%- for m in messages %}{%- if m['role'] == 'assistant' and '</think>' in m['content'] %}
{{- '<|im_start|>assistant\n' + m['content'].split('</think>')[-1] + '<|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"""


@pytest.fixture
def ask(tmp_path, chat_folder):
    """`ask(*arguments)`: a question to a model whose template opens a thought."""
    (tmp_path / "story.txt").write_text("The keeper counted ships. " * 10)
    folder = str(chat_folder("byte-level", "opens"))

    def run(*arguments, answer=THINKS):
        given = ["-m", folder, str(tmp_path / "story.txt"), "-p", "What?", *arguments]
        return kvchat(*given, script={"answers": [answer]})

    return run


def test_the_answer_alone_is_printed(ask):
    for think in ((), ("--think", "show"), ("--think", "hide")):
        done = ask(*think)
        assert done.stdout == b"Ships.\n" and b"At sea" not in done.stderr, done.stderr


def test_json_has_the_thought_and_its_tokens(ask):
    done = ask("--json")
    found = json.loads(done.stdout)
    assert (found["answer"], found["reasoning"]) == ("Ships.", "At sea.")
    usage = found["usage"]
    assert 0 < usage["reasoning_tokens"] < usage["completion_tokens"]
    events = [json.loads(line) for line in ask("--jsonl").stdout.splitlines()]
    texts = {kind: "".join(e["text"] for e in events if e["event"] == kind)
             for kind in ("thought", "token")}  # fmt: skip
    assert texts == {"thought": "At sea.\n", "token": "Ships."}


def test_a_limit_inside_of_the_thought(ask):
    done = ask("-n", "3", "--json")
    found = json.loads(done.stdout)
    assert (found["answer"], found["finish_reason"]) == ("", "length")
    assert found["usage"]["reasoning_tokens"] == 3
    plain = ask("-n", "3")
    assert plain.stdout.strip() == b"" and b"thought was cut" in plain.stderr
    never = ask(answer="At sea.<|im_end|>")
    assert never.stdout.strip() == b"" and never.stderr.count(b"--think off") == 1


def test_the_demo_model_takes_a_template_that_opens_a_thought(tmp_path):
    """The case think-prefill: the template is used, and what has no thoughts says so."""
    (tmp_path / "think.jinja").write_text(OPENS)
    (tmp_path / "story.txt").write_text("The keeper counted ships. " * 10)
    given = ["-m", str(DEMO), str(tmp_path / "story.txt"), "-p", "Who?", "-n", "4", "--json"]
    found = json.loads(kvchat(*given, "--chat-template", str(tmp_path / "think.jinja")).stdout)
    assert found["warnings"] == [] and found["answer"] == "" and found["reasoning"]
    other = json.loads(kvchat(*given, "--think", "hide").stdout)
    assert len(other["warnings"]) == 1 and other["reasoning"] is None
