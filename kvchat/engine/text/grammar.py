"""Answers in a given form: after every token, which tokens may come next, by llguidance.

A JSON schema or a grammar in Lark's notation is compiled once for an answer; a mask of the
vocabulary takes tens of microseconds.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError

# One way of writing, or a small model writes white space for ever.
COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
COMPACT["coerce_one_of"] = True  # what fits several of them is taken as well
# Beside any of these, "no other properties" could contradict what they want.
OPEN = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "dependentSchemas",
     "allOf", "anyOf", "oneOf", "$ref", "if", "not"}
)  # fmt: skip
LARGEST = 2**18  # characters of a schema or a grammar


class Form:
    """The state of one answer; see `sampler.Constraint`."""

    def __init__(self, matcher: Any, vocabulary: int):
        self._matcher, self._vocabulary = matcher, vocabulary
        self._bits = np.zeros(-(-vocabulary // 32), np.uint32)

    def masked(self, logits: Tensor) -> Tensor:
        """`logits [vocab]`, those of tokens that may not come next -inf."""
        bits = self._bits
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        self._require()
        allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[: self._vocabulary]
        banned = torch.from_numpy(allowed == 0).to(logits.device)
        return logits.float().masked_fill(banned, -torch.inf)

    def accept(self, token: int) -> None:
        """Take the token that was drawn."""
        if not self._matcher.consume_token(token):
            self._require()
            raise KvchatError("model", f"token {token} does not fit the form of the answer")

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow but the end."""
        return bool(self._matcher.is_stopped())

    def _require(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error())


class Forms:
    """Makes forms for one tokenizer, whose model has so many tokens and ends answers with `ends`.

    Raises KvchatError("usage") where llguidance is not installed or cannot read the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, ends: set[int]):
        if find_spec("llguidance") is None:
            raise KvchatError(
                "usage", "an answer in a given form needs llguidance", "pip install 'kvchat[form]'"
            )
        import llguidance

        backend: Any = getattr(tokenizer.hf, "_tokenizer", None)
        if not hasattr(backend, "to_str"):
            raise KvchatError(
                "usage", "an answer in a given form needs a tokenizer.json, which the model has not"
            )
        self._library, self._vocabulary = llguidance, vocabulary
        inside = sorted(end for end in ends if end < vocabulary)
        try:
            self._tokenizer = llguidance.LLTokenizer(
                backend.to_str(), n_vocab=vocabulary, eos_token=inside or None
            )
        except Exception as error:  # it raises many kinds for what it does not know
            raise KvchatError("usage", f"llguidance cannot use the tokenizer: {error}") from None

    def of_schema(self, schema: Mapping[str, Any]) -> Form:
        """An answer that is JSON by a schema. Raises KvchatError("usage")."""
        try:
            text = json.dumps(closed(schema))
        except RecursionError:
            raise _refused("it is nested too deeply") from None
        try:
            grammar = self._library.LLMatcher.grammar_from_json_schema(text, overrides=COMPACT)
        except ValueError as error:
            raise _refused(str(error)) from None
        return self._form(grammar, len(text))

    def of_grammar(self, grammar: str) -> Form:
        """An answer that a grammar in Lark's notation makes. Raises KvchatError("usage")."""
        return self._form(self._library.LLMatcher.grammar_from_lark(grammar), len(grammar))

    def _form(self, grammar: str, characters: int) -> Form:
        if characters > LARGEST:
            raise _refused(f"{characters:,} characters are more than {LARGEST:,}")
        matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return Form(matcher, self._vocabulary)


def closed(schema: Any) -> Any:
    """The same with no properties but those that are named, where it does not say that others may
    be: small models write such for ever."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    parts = {"items", "prefixItems", "anyOf", "oneOf", "contains"}
    maps = {"properties", "$defs", "definitions"}
    found = {}
    for key, value in schema.items():
        if key in maps and isinstance(value, Mapping):
            value = {name: closed(each) for name, each in value.items()}
        found[key] = closed(value) if key in parts else value
    if isinstance(found.get("properties"), Mapping) and not OPEN & found.keys():
        found["additionalProperties"] = False
    return found


def _refused(reason: str) -> KvchatError:
    return KvchatError("usage", f"the form of the answer cannot be used: {first(reason)}")


def first(text: str) -> str:
    """The first line of a message of the library, shortened."""
    return next(iter(text.strip().splitlines()), "it failed")[:300]
