"""tokenizer.json read without transformers gives the same, and imports nothing of it."""

import json
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.engine.text.tokenizer_json import JsonTokenizer
from tests.engine import texts

KINDS = ("byte-level", "byte-level-marks", "sentencepiece", "sentencepiece-first")
TEXTS = ("The keeper", " two  spaces\n\n\tand 4711", "<s>[INST] <|im_start|>x</s>", "你好 😀", "")
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What <did> he count?"},
    {"role": "assistant", "content": "Ships."},
    {"role": "user", "content": "And?"},
]


def both(folder) -> tuple[JsonTokenizer, object]:
    return JsonTokenizer.load(folder), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def assert_alike(ours, theirs):
    """The same ids, texts, names and special tokens."""
    for text in TEXTS:
        for added in (True, False):
            for split in (True, False):
                how = {"add_special_tokens": added, "split_special_tokens": split}
                ids = ours(text, **how)["input_ids"]
                assert ids == theirs(text, **how)["input_ids"], (text, how)
                for skip in (True, False):
                    told = theirs.decode(ids, skip_special_tokens=skip)
                    assert ours.decode(ids, skip_special_tokens=skip) == told
    kinds = [
        {i: (t.content, t.special, t.rstrip) for i, t in each.added_tokens_decoder.items()}
        for each in (ours, theirs)
    ]
    assert kinds[0] == kinds[1] and len(ours) == len(theirs)
    for role in ("bos_token_id", "eos_token_id"):
        assert getattr(ours, role) == getattr(theirs, role)
    assert ours.chat_template == theirs.chat_template


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_makes_of_the_same_files(tokenizer_folder, kind):
    assert_alike(*both(tokenizer_folder(kind)))


@pytest.mark.parametrize("name", texts.TEMPLATES)
@pytest.mark.parametrize("thinking", [None, True, False])
def test_templates_are_rendered_as_transformers_does(tokenizer_folder, name, thinking):
    ours, theirs = both(tokenizer_folder("sentencepiece-first", name))
    told = {} if thinking is None else {"enable_thinking": thinking}
    for messages in (MESSAGES, MESSAGES[1:]):
        found = []
        for each in (ours, theirs):
            try:
                text = each.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **told
                )
            except Exception as error:  # "System role not supported"
                text = str(error)
            found.append(text)
        assert found[0] == found[1]


EDITS = {
    "a token of the config alone": {
        "added_tokens_decoder": {
            "9000": {"content": "<new>", "special": True, "rstrip": True, "normalized": False}
        }
    },
    "an end that is no token yet": {"eos_token": "<end>"},
    "an end with its properties": {
        "eos_token": {"__type": "AddedToken", "content": "<end>", "special": True}
    },
    "more special tokens": {"additional_special_tokens": ["<a>", "<b>", "<s>"]},
    "several templates": {
        "chat_template": [
            {"name": "tool_use", "template": "T"},
            {"name": "default", "template": "{{ messages[0].content }}"},
        ]
    },
    "no beginning": {"add_bos_token": False},
    "a beginning": {"add_bos_token": True},
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece-first"])
def test_files_beside_tokenizer_json(tmp_path, kind, edit):
    texts.save_tokenizer(tmp_path, kind)
    file = tmp_path / "tokenizer_config.json"
    changed = json.loads(file.read_text()) | EDITS[edit]
    if "extra_special_tokens" in changed and "additional_special_tokens" in changed:
        changed["additional_special_tokens"] += changed.pop("extra_special_tokens")
    file.write_text(json.dumps(changed))
    ours, theirs = both(tmp_path)
    if isinstance(theirs.chat_template, dict):
        assert ours.get_chat_template() == "{{ messages[0].content }}"
    assert_alike(ours, theirs)


def test_a_template_in_a_file_goes_before_the_config(tmp_path):
    texts.save_tokenizer(tmp_path, "byte-level", "chatml")
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": "no"}))
    assert JsonTokenizer.load(tmp_path).chat_template == texts.CHATML


def test_padding_and_truncation_of_the_file_do_not_hold(tmp_path):
    texts.save_tokenizer(tmp_path, "byte-level")
    file = tmp_path / "tokenizer.json"
    cut = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation": cut}))
    assert len(JsonTokenizer.load(tmp_path)("The keeper counted ships. " * 9)["input_ids"]) > 20


def test_transformers_is_not_imported(tokenizer_folder):
    folder = tokenizer_folder("byte-level", "chatml")
    code = (
        "import sys; from pathlib import Path; "
        "from kvchat.engine.text.tokenizer import Tokenizer; "
        "from kvchat.engine.text.chat_template import Dialogue; "
        f"assert Dialogue(Tokenizer.load(Path({str(folder)!r}))).form.is_template; "
        "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_folders_are_transformers_own(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    asked = []
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda *given, **how: asked.append(how) or 1 / 0
    )
    with pytest.raises(Exception, match="tokenizer of"):
        Tokenizer.load(tmp_path)
    assert asked == [{"local_files_only": True, "trust_remote_code": False}]
