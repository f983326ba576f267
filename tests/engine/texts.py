"""Tiny tokenizers of the kinds that Llama-like checkpoints carry, and chat templates for them."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from tests.engine import thinking

CORPUS = [
    "The old lighthouse keeper wrote the number of every ship into a thick green book.",
    "In the morning the keeper counted ships; at night he counted the stars above the sea.",
    "Question: what is the colour of the book? Answer: the book of the keeper is green.",
    "A captain asked for the number of the harbour, and the keeper told him: 4711.",
    "system user assistant said that the sea was calm, that the wind was not.",
] * 4

# Every role has a header: ChatML, as in Qwen and many Llama finetunes.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER_ONLY = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Mistral 7B Instruct v0.3 without tools: the system text goes into the LAST user message, and an
# answer begins with a space that the generation prompt does not have.
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}"
    "{%- endif %}{{- bos_token }}{%- for m in loop_messages %}{%- if m['role'] == 'user' %}"
    "{%- if loop.last and system is defined %}"
    "{{- '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + m['content']|trim + eos_token }}{%- endif %}{%- endfor %}"
)
# Llama 2 chat: [INST] is plain text, every turn begins with <s>, an answer has spaces around it.
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system = false %}{% endif %}{% for m in loop_messages %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
DATED = (
    """{{ '<|im_start|>system\nToday is ' + strftime_now('%d %b %Y') + '.\n\n' }}
{%- if messages[0].role == "system" %}{{ messages[0].content }}{% set messages = messages[1:] %}
{%- endif %}{{ '<|im_end|>\n' }}"""
    + CHATML
)
TEMPLATES = {
    "dated": DATED,
    "chatml": CHATML,
    "user-only": USER_ONLY,
    "mistral": MISTRAL,
    "llama2": LLAMA2,
    **thinking.TEMPLATES,
}
BYTE_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def save_tokenizer(folder: Path, kind: str, template: str | None = None) -> int:
    """Write a tokenizer and a template by their names; returns the vocabulary's size."""
    raw, names = {
        "byte-level": _byte_level,
        "byte-level-marks": _byte_level,
        "sentencepiece": lambda: _sentencepiece(legacy=True),
        "sentencepiece-first": lambda: _sentencepiece(legacy=False),
    }[kind]()
    hf = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    if kind == "byte-level-marks":  # as in Qwen3 and DeepSeek, and as in Magistral
        hf.add_tokens(["<think>", "</think>"])
        hf.add_tokens(["[THINK]", "[/THINK]"], special_tokens=True)
    if template is not None:
        hf.chat_template = TEMPLATES[template]
    hf.save_pretrained(folder)
    return len(hf)


def _byte_level() -> tuple[Tokenizer, dict]:
    """GPT-2 and Llama 3 style: bytes under every character, no special token is added."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=BYTE_SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    return raw, {"eos_token": "<|im_end|>", "additional_special_tokens": BYTE_SPECIALS}


def _sentencepiece(legacy: bool) -> tuple[Tokenizer, dict]:
    """Llama 2 style: spaces are U+2581, one is put in front, unknown characters become bytes.

    `legacy` puts a space after every special token too (a normalizer); otherwise only at the
    beginning of the text (a pre-tokenizer, `prepend_scheme="first"`).
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    specials = ["<unk>", "<s>", "</s>", *([] if legacy else ["[INST]", "[/INST]"])]
    names = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [name for name in learned["vocab"] if name not in names]
    raw = Tokenizer(
        models.BPE(
            vocab={name: number for number, name in enumerate(names)},
            merges=[tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if legacy:
        raw.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    raw.add_special_tokens(specials)
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", names.index("<s>"))]
    )
    extra = {} if legacy else {"additional_special_tokens": ["[INST]", "[/INST]"]}
    return raw, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", **extra}
