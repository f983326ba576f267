"""The tokens in a GGUF file's metadata, their kinds and roles, checked."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from kvchat.engine.gguf.ends import ENDS, FIM, ID_FIELDS, end_ids, fill_ids
from kvchat.engine.gguf.file import GGUF
from kvchat.errors import KvchatError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
PREFIX = "tokenizer.ggml."
NEEDED = ("bos", "eos", "eot", "eom")  # roles that must be right if the file has them
ROLES = ("bos", "eos", "unk", "pad")  # roles that chat templates know, as `bos_token` …
SENTENCEPIECE_IDS = {"unk": 0, "bos": 1, "eos": 2}  # of files that do not say
KEEPS_SPACES = ("<unk>", "<s>", "<|endoftext|>")  # Phi-3 ignores spaces after all others


class Vocabulary:
    """`tokens` by id, ids by text (`numbers`) and by role (`ids`), and which end an answer.

    `kinds` are what the file says, `marks` what the tokens are taken for: texts known to be
    special are special. Raises KvchatError("model") for what does not fit together.
    """

    def __init__(self, file: GGUF):
        self._file: Mapping[str, Any] = file
        self.path = file.path
        self.model = self.text("model")
        texts = self.array("tokens", str)
        if not texts:
            raise self.refusal("it has no tokens")
        self.tokens = [text or f"[EMPTY_{number}]" for number, text in enumerate(texts)]
        self.numbers = {text: number for number, text in enumerate(self.tokens)}
        if len(self.numbers) < len(self.tokens):
            twice = next(text for i, text in enumerate(self.tokens) if self.numbers[text] != i)
            raise self.refusal(f"{twice!r} is there twice among its {len(self.tokens):,} tokens")
        self.kinds: Sequence[int] = [NORMAL] * len(self.tokens)
        if f"{PREFIX}token_type" in file:
            self.kinds = self.per_token("token_type", int)
        self.ids = fill_ids(self.numbers, self._ids())
        self.ends = end_ids(self.numbers, self.ids)
        self.marks = self._marks()

    def refusal(self, what: str, *ways: str) -> KvchatError:
        """An error that names the file."""
        return KvchatError("model", f"the tokenizer of {self.path} cannot be used: {what}", *ways)

    def text(self, field: str) -> str | None:
        """A text of the metadata, or None."""
        value = self._file.get(PREFIX + field)
        return value if isinstance(value, str) else None

    def flag(self, field: str, otherwise: bool) -> bool:
        """A yes or no of the metadata."""
        value = self._file.get(PREFIX + field)
        return value if isinstance(value, bool) else otherwise

    def array(self, field: str, kind: type) -> tuple[Any, ...]:
        """An array of the metadata."""
        values = self._file.get(PREFIX + field)
        if values is None:
            raise self.refusal(f"the file has no {PREFIX}{field}", "download another file of it")
        if not isinstance(values, tuple) or (values and not isinstance(values[0], kind)):
            raise self.refusal(f"its {PREFIX}{field} is no list of {kind.__name__}")
        return values

    def per_token(self, field: str, kind: type) -> tuple[Any, ...]:
        """An array with a value for each token."""
        values = self.array(field, kind)
        if len(values) != len(self.tokens):
            raise self.refusal(
                f"it has {len(self.tokens):,} tokens and {len(values):,} values of {field}",
                "download the file again",
            )
        return values

    def mark(self, backend: Tokenizer) -> None:
        """Tells `backend` which tokens are special and which are found in any text."""
        name = str(self._file.get("general.name", "")).lower()  # all that tells Phi-3
        strips = self.model == "llama" and ("phi-3" in name or "phi3" in name)
        special: list[AddedToken] = []
        found: list[AddedToken] = []
        for number, kind in self.marks.items():
            text, is_special = self.tokens[number], kind != USER_DEFINED
            token = AddedToken(
                text,
                normalized=False,
                special=is_special,
                rstrip=strips and text not in KEEPS_SPACES,
            )
            (special if is_special else found).append(token)
        backend.add_special_tokens(special)
        backend.add_tokens(found)

    def roles(self) -> dict[str, str]:
        """Texts of special tokens by their names in chat templates."""
        return {f"{role}_token": self.tokens[self.ids[role]] for role in ROLES if role in self.ids}

    def _marks(self) -> dict[int, int]:
        """Kinds of tokens that are not normal text, by id."""
        kinds = {
            number: kind
            for number, kind in enumerate(self.kinds)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        }
        special = {self.numbers[name] for name in ENDS if name in self.numbers}
        kinds |= dict.fromkeys(
            special | {self.ids[role] for role in FIM if role in self.ids}, CONTROL
        )
        return kinds

    def _ids(self) -> dict[str, int]:
        ids = dict(SENTENCEPIECE_IDS) if self.model == "llama" else {}
        for role, fields in ID_FIELDS.items():
            for field in fields:
                value = self._file.get(f"{PREFIX}{field}_token_id")
                if not isinstance(value, int):
                    continue
                if 0 <= value < len(self.tokens):
                    ids[role] = value
                    break
                if role in NEEDED:  # of others, padding, -1 is common
                    raise self.refusal(
                        f"its {role} token is number {value:,} of {len(self.tokens):,}",
                        "download another file of it",
                    )
        return ids
