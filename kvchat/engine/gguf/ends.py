"""Which tokens end an answer: those that a GGUF file names, and those known by their texts.

Files often name one token where the model writes several, so llama.cpp goes by texts too; so do
we. Tokens known by their texts are special whatever the file says they are. Unlike there, `</s>` is
an end only where the file names it: in Qwen's and Gemma's vocabularies it is a tag of HTML.
"""

from collections.abc import Mapping

# fields `tokenizer.ggml.…_token_id` by role; the later ones are of older files
ID_FIELDS = {
    "bos": ("bos",),
    "eos": ("eos",),
    "eot": ("eot",),
    "eom": ("eom",),
    "unk": ("unknown",),
    "pad": ("padding",),
    "fim_pre": ("fim_pre", "prefix"),
    "fim_suf": ("fim_suf", "suffix"),
    "fim_mid": ("fim_mid", "middle"),
    "fim_pad": ("fim_pad",),
    "fim_rep": ("fim_rep",),
    "fim_sep": ("fim_sep",),
}
# marks around code to fill in, for files that do not name them; the last three end an answer
FIM = {
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>",
                "▁<PRE>", "<|code_prefix|>", "<|prefix|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>",
                "▁<SUF>", "<|code_suffix|>", "<|suffix|>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>",
                "▁<MID>", "<|code_middle|>", "<|middle|>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
ENDS = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>",
    "<|calls|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
    "[EOT]", "[EOS]", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip
# Beside one of both, `<|end|>` ends a part of an answer, not the answer
CALLS, RETURNS = {"<|call|>", "<|calls|>"}, {"<|return|>", "<|flush|>"}


def fill_ids(numbers: Mapping[str, int], ids: Mapping[str, int]) -> dict[str, int]:
    """`ids` of roles, completed with marks around code known by their texts in `numbers`."""
    found = {}
    for role, names in FIM.items():
        number = next((numbers[name] for name in names if name in numbers), None)
        if number is not None:
            found[role] = number
    return found | dict(ids)


def end_ids(numbers: Mapping[str, int], ids: Mapping[str, int]) -> frozenset[int]:
    """Ids of tokens that end an answer; `numbers` are ids by text, `ids` by role."""
    named = {name for name in ENDS if name in numbers}
    if CALLS & named and RETURNS & named:
        named.discard("<|end|>")
    roles = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
    return frozenset({numbers[n] for n in named} | {ids[role] for role in roles if role in ids})
