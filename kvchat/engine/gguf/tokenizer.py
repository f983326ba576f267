"""A tokenizer from a GGUF file's metadata: its ids are those of llama.cpp.

Two models of text are known: `gpt2`, BPE over bytes with a list of merges, applied to words
(`pretokenizers.py`); and `llama`, SentencePiece's BPE over characters, where pairs that make the
token with the highest score are merged first.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from kvchat.engine.gguf.file import GGUF
from kvchat.engine.gguf.pretokenizers import DEFAULT, PRETOKENIZERS, PreTokenizer
from kvchat.engine.gguf.vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary

SPACE = "\u2581"  # stands for a space inside SentencePiece's tokens
TEMPLATE = "tokenizer.chat_template"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileTokenizer:
    """What a file says: the tokenizer, special tokens by role, ids that end an answer.

    `roles` are texts by the names that chat templates use (`bos_token`, …).
    """

    backend: Tokenizer
    roles: dict[str, str]
    ends: frozenset[int]
    chat_template: str | None


def read_tokenizer(file: GGUF) -> FileTokenizer:
    """The tokenizer of a GGUF file. Raises KvchatError("model")."""
    vocabulary = Vocabulary(file)
    build = BUILDERS.get(vocabulary.model or "")
    if build is None:
        raise vocabulary.refusal(
            f"its kind is {vocabulary.model!r} (supported: {', '.join(BUILDERS)})",
            "choose another model",
        )
    backend, begins = build(vocabulary)
    vocabulary.mark(backend)
    bos = vocabulary.ids.get("bos")
    if bos is not None and vocabulary.flag("add_bos_token", begins):
        begin = {"id": "bos", "ids": [bos], "tokens": [vocabulary.tokens[bos]]}
        backend.post_processor = processors.TemplateProcessing(
            single=["bos", "$A"], special_tokens=[begin]
        )
    template = file.get(TEMPLATE)
    return FileTokenizer(
        backend,
        vocabulary.roles(),
        vocabulary.ends,
        template if isinstance(template, str) and template else None,
    )


def _byte_level(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """BPE over bytes, and whether a text begins with the beginning-of-text token."""
    rules = _rules(vocabulary)
    merges = dict.fromkeys(vocabulary.array("merges", str))  # of two that are equal the first
    try:
        model = models.BPE(
            vocab=vocabulary.numbers,
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            ignore_merges=rules.whole,
        )
    except Exception as error:  # the library raises plain ones
        whole = next((merge for merge in merges if " " not in merge), None)
        why = str(error).splitlines()[0] if whole is None else f"{whole!r} is no pair"
        raise vocabulary.refusal(
            f"its merges do not fit its tokens: {why}", "download the file again"
        ) from None
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(each), "isolated") for each in rules.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend, rules.bos


def _rules(vocabulary: Vocabulary) -> PreTokenizer:
    name = vocabulary.text("pre")
    if name is None:
        logger.warning(
            "%s does not say how text is cut into words: it is older than that, and answers may "
            "be worse than the model's",
            vocabulary.path,
        )
        name = DEFAULT
    if name not in PRETOKENIZERS:
        raise vocabulary.refusal(
            f"its pre-tokenizer is {name!r} (supported: {', '.join(PRETOKENIZERS)})",
            "choose another model",
        )
    return PRETOKENIZERS[name]


def _sentencepiece(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """BPE over characters by scores; what is no token becomes bytes. A text begins with bos."""
    unknown = vocabulary.tokens[vocabulary.ids["unk"]]
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary.numbers,
            merges=_merges_by_score(vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    has_prefix = vocabulary.flag("add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    prefix = normalizers.Prepend(SPACE)
    backend.normalizer = normalizers.Sequence([prefix, spaces]) if has_prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if has_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    return backend, True


def _merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every pair of tokens whose texts make a third one, in the order of the third one's score.

    No pair makes a special token: a document that spells one out must not become one. Texts of
    user-defined tokens are found before anything is merged.
    """
    tokens, numbers, kinds = vocabulary.tokens, vocabulary.numbers, vocabulary.kinds
    scores = vocabulary.per_token("scores", float)
    order = sorted(range(len(tokens)), key=scores.__getitem__, reverse=True)
    apart = {UNKNOWN, CONTROL, USER_DEFINED}
    return [
        (text[:cut], text[cut:])
        for text in (tokens[number] for number in order if kinds[number] not in apart)
        for cut in range(1, len(text))
        if text[:cut] in numbers and text[cut:] in numbers
    ]


BUILDERS: dict[str, Callable[[Vocabulary], tuple[Tokenizer, bool]]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}
