"""How text is cut into words before byte-level BPE, by the name that a GGUF file gives.

Each name stands for regular expressions that are applied one after the other: every match becomes
a word, and so does what lies between matches. They are those of llama.cpp, by which the files are
made and compared, also where it reads a model's own expressions in another way (it takes upper
and lower case of letters outside ASCII as one, and gives digits in groups of three their left
neighbours).
"""

from dataclasses import dataclass

SPACES = r"\s+(?!\S)|\s+"
LINES = r"\s*[\r\n]+|" + SPACES
LOWER_ENDING = "'(?:[stmd]|re|ve|ll)"
ENDING = "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
SIGNS = r" ?[^\s\p{L}\p{N}]+"
ASCII_SIGN = r"[!-/:-@\[-`{-~]"
KANA_HAN = r"[\x{4e00}-\x{9fa5}\x{3040}-\x{30ff}]+"
HAN = (
    r"\x{3400}-\x{4dbf}\x{4e00}-\x{9fff}\x{f900}-\x{faff}\x{20000}-\x{2a6df}"
    r"\x{2a700}-\x{2ebef}\x{2f800}-\x{2fa1f}"
)
WIDE = r"[\x{800}-\x{9fa5}\x{ac00}-\x{d7ff}&&[^\s]]+"
# Letters with case in the scripts that had it when DeepSeek's first tokenizer was made
CASED = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\x{560}-\x{588}\x{10c6}-\x{10ff}\x{1c80}-\x{1c8f}\x{2d00}-\x{2d2f}"
    r"\x{a78f}-\x{a7ff}\x{ab30}-\x{ab6f}\x{10570}-\x{105bf}\x{10d50}-\x{10d8f}\x{16e40}-\x{16eff}"
    r"\x{1d400}-\x{1d7ff}\x{1df00}-\x{1dfff}]]+"
)
# before a number whose digits left over make whole groups of three
THREES = r"(?=(?:[0-9]{3})+(?![0-9]))"
AFTER_THREES = r"(?<=\p{N})(?=(?:\p{N}{3})*(?!\p{N}))"


def _words(
    letters: str = r"\p{L}+",
    digits: str = r"\p{N}",
    signs: str = SIGNS + r"[\r\n]*",
    *,
    ending: bool = True,
    lines: str = LINES,
) -> str:
    """Words with the sign before them, numbers, signs with the ends of lines behind them."""
    before = f"{ENDING}|" if ending else ""
    return rf"{before}[^\r\n\p{{L}}\p{{N}}]?{letters}|{digits}|{signs}|{lines}"


def _cased(upper: str, lower: str, digits: str, ending: str = f"(?:{ENDING})?") -> str:
    """Words that end where small letters are followed by a capital."""
    first = rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{ending}"
    second = rf"[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{ending}"
    return rf"{first}|{second}|{digits}|{SIGNS}[\r\n/]*|{LINES}"


GPT2 = rf"{LOWER_ENDING}| ?\p{{L}}+| ?\p{{N}}+|{SIGNS}|{SPACES}"
LLAMA3 = _words(digits=r"\p{N}{1,3}")
QWEN2 = _words()
DEEPSEEK = (
    rf"{ASCII_SIGN}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    r"| ?[\p{P}\p{S}]+"
)
UPPER, LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
MARKED = r"[\p{L}\p{M}]"
HALVES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))


@dataclass(frozen=True)
class PreTokenizer:
    """`patterns` in their order; `whole`: a word that is a token is not cut up and merged again.

    `bos`: a text begins with the beginning-of-text token, unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    bos: bool = False


_GPT2 = PreTokenizer((GPT2,))
_DIGITS = PreTokenizer((r"\p{N}", GPT2))
_LLAMA3 = PreTokenizer((LLAMA3,))
_LLAMA3_WHOLE = PreTokenizer((LLAMA3,), whole=True, bos=True)
_QWEN2 = PreTokenizer((QWEN2,))
_DEEPSEEK3 = PreTokenizer((r"\p{N}{1,3}", KANA_HAN, rf"{DEEPSEEK}[\r\n]*|{LINES}"))
_GPT4O = PreTokenizer((_cased(UPPER, LOWER, r"\p{N}{1,3}"),))
_BLOOM = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+"
_BAILING = PreTokenizer((_words(lines=rf"\s*[\r\n]|{SPACES}"),))
_AYA = PreTokenizer((AFTER_THREES, _cased(MARKED, MARKED, r"\p{N}{1,3}")))

DEFAULT = "default"  # of files from before there were names

PRETOKENIZERS = {
    DEFAULT: PreTokenizer((r"[\p{P}$+<=>\^~|]+", GPT2, r"\p{N}+", "[0-9]{3}")),
    "llama3": _LLAMA3_WHOLE,
    "llama-v3": _LLAMA3_WHOLE,
    "llama-bpe": _LLAMA3_WHOLE,
    "falcon3": _LLAMA3_WHOLE,
    "falcon-h1": _LLAMA3_WHOLE,
    "pixtral": _LLAMA3_WHOLE,
    "midm-2.0": _LLAMA3_WHOLE,
    "lfm2": _LLAMA3_WHOLE,
    "dbrx": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "chatglm-bpe": _LLAMA3,
    "glm4": PreTokenizer((LLAMA3,), whole=True),
    "glm5": PreTokenizer((LLAMA3,), whole=True),
    "jais-2": PreTokenizer(
        (_words(digits=r"\p{N}{1,3}", lines=rf"\s*[\r\n]+|{HALVES}|\s"),)
    ),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _words(digits=r"\p{N}+")), whole=True),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "megrez": _QWEN2,
    "kormo": _QWEN2,
    "stablelm2": _QWEN2,
    "hunyuan": _QWEN2,
    "solar-open": _QWEN2,
    "grok-2": _QWEN2,
    "qwen35": PreTokenizer(
        (_words(r"[\p{L}\p{M}]+", signs=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),)
    ),
    "ufakzeka": PreTokenizer((_words(ending=False),)),
    "laguna": PreTokenizer((r"\n+", QWEN2)),
    "bailingmoe": _BAILING,
    "bailingmoe2": _BAILING,
    "llada-moe": _BAILING,
    "seed-coder": PreTokenizer((_words(signs=SIGNS),)),
    "exaone-moe": PreTokenizer(
        (
            _words(
                r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
                signs=SIGNS + r"[\r\n/]?",
                lines=rf"\s*[\r\n]|{SPACES}",
            ),
        )
    ),
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "gigachat": _GPT2,
    "a.x-4.0": _GPT2,
    "mellum": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "jais": _GPT2,
    "trillion": _GPT2,
    "granite-docling": _GPT2,
    "exaone4": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "codeshell": _DIGITS,
    "exaone": _DIGITS,
    "minerva-7b": _DIGITS,
    "mellum2": _DIGITS,
    "falcon": PreTokenizer((r"[\p{P}$+<=>\^~|`]+", GPT2, "[0-9]{3}")),
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
    "kanana2": _GPT4O,
    "talkie": _GPT4O,
    "minimax-m2": _GPT4O,
    "tekken": PreTokenizer((_cased(UPPER, LOWER, r"\p{N}", ""),), whole=True, bos=True),
    "tiny_aya": _AYA,
    "cohere2moe": _AYA,
    "youtu": PreTokenizer(
        (
            r"[\x{ac00}-\x{d7a3}\x{3131}-\x{318e}]+"
            r"|[\x{ff01}\x{2026}\x{201c}\x{201d}\x{2018}\x{2019}\x{2014}\x{ff1a}\x{ff1b}\x{ff0c}"
            r"\x{3001}-\x{303f}\x{fe30}-\x{fe4f}]+"
            rf"|[\x{{3105}}-\x{{312f}}]+|{KANA_HAN}",
            _cased(MARKED, MARKED, r"\p{N}"),
        ),
        whole=True,
    ),
    "kimi-k2": PreTokenizer(
        (
            rf"[{HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{HAN}]]+(?:{ENDING})?"
            rf"|\p{{N}}{{1,3}}|{SIGNS}[\r\n]*|{LINES}",
        )
    ),
    "superbpe": PreTokenizer((r"\p{N}+", THREES)),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?{CASED}",
            r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3001}\x{3002}]+",
            r"\s+\z",
            WIDE,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", WIDE, r"\p{N}")),
    "deepseek-v3": _DEEPSEEK3,
    "hunyuan-dense": _DEEPSEEK3,
    "hy_v4": _DEEPSEEK3,
    "joyai-llm": _DEEPSEEK3,
    "spark2_5": PreTokenizer(
        (r"\p{N}{1,3}", KANA_HAN, rf"{DEEPSEEK}|[\r\n]|{SPACES}", r"\p{N}")
    ),
    "afmoe": PreTokenizer(
        (
            AFTER_THREES,
            r"[\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{8c48}-\x{faff}\x{3040}-\x{30ff}"
            r"\x{ff65}-\x{ff9f}\x{2f00}-\x{2fdf}\x{e40}-\x{eff}\x{1780}-\x{17ff}\x{1000}-\x{109f}"
            r"\x{aa60}-\x{aa7f}\x{a9e0}-\x{a9ff}\x{ac00}-\x{d7af}\x{1100}-\x{11ff}]+",
            rf"{DEEPSEEK}[\r\n]*|{LINES}",
        )
    ),
    "bloom": PreTokenizer((_BLOOM,)),
    "poro-chat": PreTokenizer((_BLOOM,)),
    "gpt3-finnish": PreTokenizer((_BLOOM,)),
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
    "chameleon": PreTokenizer(
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            "[\\t\\n]|    |  ",
            r"\p{N}",
            rf"[\p{{P}}{ASCII_SIGN[1:]}",
            GPT2,
        ),
        bos=True,
    ),
}  # fmt: skip
