"""Which files of a Hugging Face repository are downloaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kvchat.errors import KvchatError
from kvchat.hub import gguf_files
from kvchat.terminal.text import clean, size

# Everything that kvchat reads from a model's folder, small files first.
SMALL = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|chat_template|"
    r"model\.safetensors\.index)\.json|tokenizer\.model|chat_template\.jinja"
)
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
# Of a repository of GGUF files, where nobody names one: four bits first, then what is near them.
ORDER = (
    *("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "IQ4_XS", "IQ4_NL", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0"),
    *("BF16", "F16", "F32", "Q3_K_L", "Q3_K_M", "Q2_K"),
)


@dataclass(frozen=True)
class Pick:
    """Names of files, in the order in which they are fetched; `why` is said to the person."""

    files: tuple[str, ...]
    gguf: bool = False
    why: str = ""


def pick(repository: str, sizes: Mapping[str, int], wanted: str = "", file: str = "") -> Pick:
    """Files of a repository: safetensors with what belongs to them, or one GGUF model.

    `wanted` is a format (`Q5_K_M`), `file` a name. Raises KvchatError("model").
    """
    weights = sorted(name for name in sizes if WEIGHTS.fullmatch(name))
    found = gguf_files.models(sizes)
    if weights and "config.json" in sizes and not (wanted or file):
        small = [name for name in sizes if SMALL.fullmatch(name) and name != "config.json"]
        return Pick(("config.json", *small, *weights))
    if not found:
        missing = "config.json" if weights else "safetensors and no GGUF file"
        raise KvchatError("model", f"{repository} has no {missing}: kvchat cannot read it")
    if file:
        return _named(repository, found, sizes, file)
    return _of_format(repository, found, sizes, wanted)


def _named(
    repository: str, found: Mapping[str, list[str]], sizes: Mapping[str, int], file: str
) -> Pick:
    for name, parts in found.items():
        asked = (
            name,
            name.rpartition("/")[2],
            *parts,
            *(part.rpartition("/")[2] for part in parts),
        )
        if file in asked:
            return Pick(tuple(parts), True)
    raise KvchatError(
        "model", f"{repository} has no {clean(file)}; {_listed(found, sizes)}", "--file NAME"
    )


def _of_format(
    repository: str, found: Mapping[str, list[str]], sizes: Mapping[str, int], wanted: str
) -> Pick:
    tags = {name: gguf_files.tag(name) for name in found}
    for each in [wanted.upper()] if wanted else ORDER:
        same = [name for name, its in tags.items() if its == each]
        if same:
            name = min(same, key=len)
            others = len(found) - 1
            why = f"{each} of {len(found)} formats (another: {repository}:FORMAT)"
            return Pick(tuple(found[name]), True, "" if wanted or not others else why)
    if not wanted and len(found) == 1:
        return Pick(tuple(next(iter(found.values()))), True)
    raise KvchatError(
        "model",
        f"{repository} has no {clean(wanted) or 'format that is known'}; {_listed(found, sizes)}",
        *(f"kvchat models pull {repository}:{its}" for its in [*tags.values()][:8] if its),
        "--file NAME",
    )


def _listed(found: Mapping[str, list[str]], sizes: Mapping[str, int]) -> str:
    told = [
        f"{gguf_files.tag(name) or name} {size(sum(sizes[part] for part in parts))}"
        for name, parts in found.items()
    ]
    return f"there: {', '.join(told)}"
