"""tokenizer.json and the files beside it, read without transformers, whose import takes longer than
a short answer."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from threading import Lock
from typing import Any

from tokenizers import AddedToken, Tokenizer

from kvchat.engine.text.rendering import render

FILE, CONFIG, SPECIALS = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")


class JsonTokenizer:
    """A tokenizer with the names that its tokens go by and its chat template.

    It answers to what `Tokenizer` asks of one of transformers, under the same names.
    """

    def __init__(
        self,
        backend: Tokenizer,
        roles: Mapping[str, str],
        template: str | Mapping[str, str] | None = None,
        adds_bos: bool = False,
    ):
        """`roles` are tokens by their names, as in `eos_token`; `adds_bos`: whether a text begins
        with the beginning-of-text token, whatever the file says."""
        self._tokenizer, self.special_tokens_map = backend, dict(roles)
        self.chat_template = template
        self._adds_bos = adds_bos
        self._alone = Lock()  # how it encodes is said before each text
        backend.no_truncation()
        backend.no_padding()

    @classmethod
    def load(cls, folder: Path) -> "JsonTokenizer":
        """The tokenizer of a folder with tokenizer.json. Raises what the libraries raise."""
        backend = Tokenizer.from_file(str(folder / FILE))
        config = _read(folder / CONFIG)
        named = _read(folder / SPECIALS) | config
        roles = {role: _text(named[role]) for role in ROLES if named.get(role)}
        lists = [named.get(name) or () for name in LISTS]
        more = [_text(token) for each in lists if isinstance(each, list) for token in each]
        _add_missing(backend, config.get("added_tokens_decoder") or {}, [*roles.values(), *more])
        return cls(
            backend,
            roles,
            _template(folder, config.get("chat_template")),
            config.get("add_bos_token") is True,
        )

    def __call__(
        self,
        text: str,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        return_offsets_mapping: bool = False,
        **_: Any,
    ) -> dict[str, Any]:
        """`input_ids` of a text; with `split_special_tokens` the names of special tokens are text
        like any other, with `return_offsets_mapping` the characters of each id in
        `offset_mapping`."""
        backend = self._tokenizer
        encode = backend.encode_batch if return_offsets_mapping else backend.encode_batch_fast
        with self._alone:
            backend.encode_special_tokens = split_special_tokens
            [found] = encode([text], add_special_tokens=add_special_tokens)
        ids, spans, bos = found.ids, found.offsets, self.bos_token_id
        if add_special_tokens and self._adds_bos and bos is not None and ids[:1] != [bos]:
            ids, spans = [bos, *ids], [(0, 0), *spans]
        return {"input_ids": ids} | ({"offset_mapping": spans} if return_offsets_mapping else {})

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def bos_token_id(self) -> int | None:
        """The id of the beginning-of-text token, if there is one."""
        return self._id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text, if there is one."""
        return self._id("eos_token")

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens that are no part of the model's vocabulary proper, by their ids."""
        return self._tokenizer.get_added_tokens_decoder()

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary has them; those that there are not, as empty text."""
        return [self._tokenizer.id_to_token(each) or "" for each in ids]

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a token."""
        return self._tokenizer.token_to_id(token)

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their ids."""
        return self._tokenizer.get_vocab()

    def add_tokens(self, tokens: Sequence[str]) -> int:
        """Add tokens that are not special; how many were new."""
        return self._tokenizer.add_tokens(list(tokens))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **_: Any) -> str:
        """The text of ids."""
        with self._alone:
            return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def get_chat_template(self) -> str:
        """The chat template. Raises ValueError if there is none for a chat."""
        found = self.chat_template
        if isinstance(found, Mapping):
            found = found.get("default")
        if found is None:
            raise ValueError("it has none for chats")
        return found

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, str]],
        chat_template: str | None = None,
        tokenize: bool = False,
        **values: Any,
    ) -> str:
        """The text that the template makes of messages today. Raises ValueError if none."""
        template = chat_template or self.get_chat_template()
        [found] = render(template, self.special_tokens_map, [(messages, values)], [date.today()])
        if (text := found.texts[0]) is None:
            raise ValueError(found.reasons[0])
        return text

    def _id(self, role: str) -> int | None:
        token = self.special_tokens_map.get(role)
        return None if token is None else self._tokenizer.token_to_id(token)


def _add_missing(backend: Tokenizer, decoder: Mapping[str, Any], special: Iterable[str]) -> None:
    """Tokens that the files beside tokenizer.json name and it lacks, in the order of their ids."""
    there = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    new = [
        AddedToken(
            token["content"],
            **{key: bool(token.get(key)) for key in ("single_word", "lstrip", "rstrip", "special")},
            normalized=token.get("normalized", not token.get("special")),
        )
        for _, token in sorted(decoder.items(), key=lambda item: int(item[0]))
        if token["content"] not in there
    ]
    named = {token.content for token in new}
    new += [
        AddedToken(name, special=True, normalized=False)
        for name in dict.fromkeys(special)
        if name not in named and name not in there
    ]
    if new:
        backend.add_tokens(new)


def _template(folder: Path, given: Any) -> str | dict[str, str] | None:
    """The chat template of a folder: a file of its own goes before the entry in the config."""
    file = folder / TEMPLATE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if isinstance(given, list):
        given = {each["name"]: each["template"] for each in given}
    return given if isinstance(given, str | dict) else None


def _read(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} is no JSON object")
    return found


def _text(token: Any) -> str:
    """A token that is named, or described in an object."""
    return str(token["content"] if isinstance(token, dict) else token)
