"""Byte-level BPE without merges: every word of the world is one token, all other text is bytes."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kvchat.eval import world

CHAT_TEMPLATE = (
    # a question is followed by its answer at once: no end token between them
    "{{bos_token}}{% for m in messages %}<|{{m['role']}}|>{{m['content']}}"
    "{% if m['role'] != 'user' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_letters() -> list[str]:
    """The printable letter that byte-level tokenizers show for each of the 256 bytes (GPT-2)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


def build() -> PreTrainedTokenizerFast:
    """The tokenizer whose ids are those of `world`; it loses no character of any UTF-8 text."""
    letters = byte_letters()
    vocab = {token: i for i, token in enumerate(world.SPECIALS)}
    vocab |= {letter: world.BYTE0 + byte for byte, letter in enumerate(letters)}
    for i, piece in enumerate(world.PIECES):
        vocab["".join(letters[byte] for byte in piece.encode())] = world.WORD0 + i
    # ignore_merges looks a whole word up before it falls back to its bytes.
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")
    core.add_special_tokens(world.SPECIALS)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    build().save_pretrained(folder)
