"""A tokenizer from a GGUF file has llama.cpp's ids, whatever the script, the spaces and the code;
special tokens are parsed in trusted text only; damaged vocabularies are refused by name."""

import logging

import pytest

from kvchat.engine.gguf.pretokenizers import PRETOKENIZERS
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import TextStream, Tokenizer
from kvchat.errors import KvchatError
from tests.engine.gguf import files

RECORDED = files.load()
TEXTS, IDS = RECORDED["texts"], files.recorded_ids(RECORDED)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def made(tmp_path):
    """`made(case, **fields) -> Tokenizer` of a file of a recorded case with other fields."""

    def make(case: str, **fields) -> Tokenizer:
        all_fields = files.case_fields(RECORDED, RECORDED["cases"][case]) | fields
        return Tokenizer.load(files.write(tmp_path / "small.gguf", all_fields))

    return make


def test_what_is_recorded_is_worth_it():
    """Every pre-tokenizer, two hundred texts, and no list of ids that all of them share."""
    assert set(PRETOKENIZERS) < set(RECORDED["cases"]) and len(set(TEXTS)) >= 200
    assert {"space in front", "no space in front", "phi-3"} < set(RECORDED["cases"])
    assert len({str(IDS[name]) for name in PRETOKENIZERS}) >= 28


@pytest.mark.parametrize("case", RECORDED["cases"])
def test_ids_are_those_of_llama_cpp(made, case):
    tokenizer = made(case)
    foreign = [tokenizer.encode([(text, False)]) for text in TEXTS]
    trusted = [tokenizer.encode([(text, True)]) for text in TEXTS]
    assert foreign == IDS[case]
    assert trusted == IDS[f"{case}, trusted"]


@pytest.mark.parametrize("case", ["smollm", "deepseek-v3", "space in front", "no space in front"])
def test_text_comes_back_whole_and_streamed(made, case):
    """Bytes, spaces and ends of lines; special tokens are left out."""
    tokenizer = made(case)
    # SentencePiece's sign for a space reads as one, and it puts one after user-defined tokens
    lost = ("▁", "<tool_call>", "=-=") if "space" in case else ()
    for text in (text for text in TEXTS if not any(each in text for each in lost)):
        ids = tokenizer.encode([(text, False)])
        stream = TextStream(tokenizer)
        assert tokenizer.decode(ids) == text
        assert "".join(map(stream.push, ids)) + stream.flush() == text
    special = "<|im_end|>" if "<|im_end|>" in tokenizer.specials else "<|end|>"
    ids = tokenizer.encode([("ab", False), (special, True), ("cd", False)])
    assert tokenizer.specials[special] in ids
    assert tokenizer.decode(ids).replace(" ", "") == "abcd"


def test_only_trusted_text_has_special_tokens(made):
    tokenizer = made("qwen2")
    end, found = tokenizer.specials["<|im_end|>"], tokenizer.hf.get_vocab()["<tool_call>"]
    assert end in tokenizer.encode([("a<|im_end|>", True)])
    assert end not in tokenizer.encode([("a<|im_end|>", False)])
    assert found in tokenizer.encode([("a<tool_call>", False)])  # user-defined: in any text
    assert "<tool_call>" not in tokenizer.specials and "<unk>" in tokenizer.specials
    assert tokenizer.decode([end, found]) == "<tool_call>"


def test_a_document_cannot_merge_into_a_special_token(made):
    """Scores merge whatever makes a token; letters that spell a special one do not."""
    sentencepiece = RECORDED["vocabularies"]["llama"]
    tokens = [*sentencepiece["tokens"], "<s", "s>"]
    fields = {
        "tokens": tokens,
        "scores": [*sentencepiece["scores"], 0.0, 0.0],
        "token_type": [*sentencepiece["token_type"], files.NORMAL, files.NORMAL],
    }
    tokenizer = made("no space in front", **fields)
    assert tokenizer.encode([("<s>", False)]) == [tokens.index("<s"), tokens.index(">")]
    assert tokenizer.encode([("<s>", True)]) == [tokenizer.specials["<s>"]]


@pytest.mark.parametrize("number", range(len(RECORDED["ends"])))
def test_ends_are_those_of_llama_cpp(tmp_path, number):
    case = RECORDED["ends"][number]
    path = files.write(tmp_path / "ends.gguf", files.ends_fields(case))
    tokenizer = Tokenizer.load(path)
    inside = {case["names"][end] for end in tokenizer.ends if end < len(case["names"])}
    # `</s>` is an end there by its text, here only where the file names it
    assert inside == set(case["found"]) - {"</s>"}
    # an end known by its text is special whatever the file says
    assert {name for name in inside if name.startswith("<|")} <= set(tokenizer.specials)


def test_bos_is_as_the_file_says_or_the_model_is_used_to(made):
    bos = {"bos_token_id": 7}
    assert made("llama3", **bos).bos == [7] and made("qwen2", **bos).bos == []
    assert made("llama3", **bos, add_bos_token=False).bos == []
    assert made("qwen2", **bos, add_bos_token=True).bos == [7]
    assert made("qwen2", add_bos_token=True).bos == []  # the file does not name one
    assert made("space in front").bos == [1] and made("space in front", **bos).bos == [7]


def test_the_chat_template_is_the_files(made):
    fields = {"bos_token_id": RECORDED["vocabularies"]["gpt2"]["tokens"].index("<|endoftext|>")}
    tokenizer = made("smollm", **fields, **{".tokenizer.chat_template": TEMPLATE})
    dialogue = Dialogue(tokenizer)
    assert dialogue.form.is_template and dialogue.form.lead.startswith("<|endoftext|><|im_start|>")
    assert tokenizer.specials["<|im_end|>"] in dialogue.end_tokens & tokenizer.ends
    assert dialogue.first("x")[-1] == tokenizer.encode([("\n", False)])[0]
    assert made("smollm").hf.chat_template is None
    assert not Dialogue(made("smollm")).form.is_template


def test_a_file_without_a_name_is_cut_by_the_first_rules_and_says_so(made, caplog):
    with caplog.at_level(logging.WARNING):
        old = made("without a name")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert old.encode([("a.b 12345", False)]) == made("default").encode([("a.b 12345", False)])


GPT2, LLAMA = RECORDED["vocabularies"]["gpt2"], RECORDED["vocabularies"]["llama"]
DAMAGED = {
    "another model": ("smollm", {"model": "bert"}, ("bert", "gpt2", "llama")),
    "no model": ("smollm", {"model": None}, ("gpt2", "llama")),
    "unknown pre-tokenizer": ("smollm", {"pre": "new-2"}, ("new-2", "smollm", "llama-bpe")),
    "no tokens": ("smollm", {"tokens": None}, ("tokenizer.ggml.tokens",)),
    "tokens of another kind": ("smollm", {"tokens": [1, 2]}, ("tokenizer.ggml.tokens",)),
    "no merges": ("smollm", {"merges": None}, ("tokenizer.ggml.merges",)),
    "merge of unknown": ("smollm", {"merges": ["a b", "qqq zzz"]}, ("qqq",)),
    "merge of one": ("smollm", {"merges": ["ab"]}, ("merges",)),
    "a token twice": ("smollm", {"tokens": [*GPT2["tokens"][:-1], "!"]}, ("'!'",)),
    "short types": ("smollm", {"token_type": [1, 1]}, ("2 ", f"{len(GPT2['tokens']):,}")),
    "eos out of range": ("smollm", {"eos_token_id": 99999}, ("99,999", "eos")),
    "no scores": ("no space in front", {"scores": None}, ("tokenizer.ggml.scores",)),
    "short scores": ("no space in front", {"scores": [0.5]}, ("1 ", f"{len(LLAMA['tokens']):,}")),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_what_does_not_fit_is_refused_in_one_line(made, what):
    case, fields, parts = DAMAGED[what]
    with pytest.raises(KvchatError) as error:
        made(case, **fields)
    message = error.value.message
    assert error.value.code == "model" and "\n" not in message and "small.gguf" in message
    assert all(part in message for part in parts)


def test_of_two_equal_merges_the_first_counts(made):
    merges = [*GPT2["merges"], *GPT2["merges"][:50]]
    tokenizer = made("smollm", merges=merges)
    assert [tokenizer.encode([(text, False)]) for text in TEXTS] == IDS["smollm"]


def test_what_others_leave_out_is_taken_as_usual(made):
    """Empty texts, no kinds, padding of -1: files have them, and answers are right all the same."""
    tokens = [*GPT2["tokens"][:-1], ""]
    tokenizer = made("smollm", tokens=tokens, token_type=None, padding_token_id=2**32 - 1)
    assert tokenizer.encode([("Hello", False)]) == made("smollm").encode([("Hello", False)])
    assert tokenizer.hf.get_vocab()[f"[EMPTY_{len(tokens) - 1}]"] == len(tokens) - 1
