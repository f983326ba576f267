"""Real weights against transformers: logits, greedy text, ids of the chat template."""

import pytest
import torch
from transformers import AutoTokenizer

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from tests.engine.tiny import load_engine, oracle_logits, read
from tests.real.conftest import TEXT
from tests.support.closeness import assert_close, relative_rms

pytestmark = pytest.mark.model


def test_logits_of_400_tokens(real):
    """f32: a prefill in chunks, an extend of 99 tokens, one decoded; within 1e-4."""
    engine = load_engine(real.folder, chunk=128)
    want = oracle_logits(real.oracle, real.ids)
    assert float(want.std()) > 1, "flat logits would prove nothing"
    cache, logits = read(engine, real.ids[:300])
    assert_close("prefill", logits, want[299], 1e-4)
    assert_close("extend", drain(engine.extend(cache, real.ids[300:399])), want[398], 1e-4)
    assert_close("decode", drain(engine.extend(cache, real.ids[399:])), want[399], 1e-4)


def test_100_greedy_tokens(real):
    ids = real.ids[:120]
    whole = torch.tensor([ids])
    with torch.inference_mode():
        want = real.oracle.generate(
            whole, attention_mask=torch.ones_like(whole), max_new_tokens=100, do_sample=False,
            repetition_penalty=1.0, pad_token_id=0,
        )[0, 120:].tolist()  # fmt: skip
    engine = load_engine(real.folder)
    tokens = engine.decode(*read(engine, ids), Sampling())
    assert [next(tokens) for _ in want] == want
    assert len(want) == 100 and len(set(want)) > 20, "a repeated word would prove little"


def test_the_file_is_the_folder(real):
    """Packed weights keep four bits as they are, scales and tables in fewer bits: some per cent."""
    want = oracle_logits(real.oracle, real.ids)[-1]
    for dtype in ("f32", "auto"):
        logits = read(load_engine(real.file, dtype), real.ids)[1]
        assert relative_rms(logits, want) < 0.03
        assert int(logits.argmax()) == int(want.argmax())


def test_ids_of_the_chat_template(real):
    """Document, question, answer, question: as transformers renders and cuts them."""
    dialogue = Dialogue(Tokenizer.load(real.file))
    oracle = AutoTokenizer.from_pretrained(real.folder)
    said = [
        {"role": "system", "content": TEXT},
        {"role": "user", "content": "What is the name of the inn?"},
    ]

    def ids(messages):
        text = oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return oracle.encode(text, add_special_tokens=False)

    first = dialogue.document(TEXT) + dialogue.first(said[1]["content"])
    assert first == ids(said)
    said += [
        {"role": "assistant", "content": "The Drowned Bell."},
        {"role": "user", "content": "Who keeps it?"},
    ]
    answer = oracle.encode("The Drowned Bell.", add_special_tokens=False)
    assert first + answer + dialogue.following("Who keeps it?") == ids(said)
