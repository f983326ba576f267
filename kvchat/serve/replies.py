"""Answers in OpenAI's JSON, whole and in pieces."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.serve.answers import Talk
from kvchat.serve.asker import Ended, Likely, Piece

# An answer that went round in circles is one that was cut.
REASONS = {"stop": "stop", "length": "length", "repetition": "length"}
Sources = Sequence[dict[str, Any]] | None


@dataclass
class Choice:
    """One of the answers to a request."""

    text: list[str] = field(default_factory=list)
    thought: list[str] = field(default_factory=list)
    likely: list[Likely] = field(default_factory=list)
    offset: int = 0  # characters whose tokens have been named
    ended: Ended | None = None
    sources: Sources = None


class Reply:
    """The JSON of one request's answers. `tokenizer` says what tokens are called."""

    def __init__(self, talk: Talk, tokenizer: Tokenizer):
        self._talk, self._tokenizer = talk, tokenizer
        self._is_chat = talk.asked.is_chat
        self._id = ("chatcmpl-" if self._is_chat else "cmpl-") + secrets.token_hex(12)
        self._choices = [Choice() for _ in range(talk.asked.n)]

    @property
    def left(self) -> int:
        """Answers that have not ended."""
        return sum(choice.ended is None for choice in self._choices)

    def take(self, number: int, piece: Piece) -> None:
        """Keep a piece of an answer for `whole`."""
        choice = self._choices[number]
        choice.text.append(piece.text)
        choice.thought.append(piece.thought)
        choice.likely += piece.likely

    def end(self, number: int, ended: Ended, sources: Sources) -> None:
        """An answer has ended."""
        self._choices[number].ended, self._choices[number].sources = ended, sources

    def whole(self) -> dict[str, Any]:
        """The answers in one object."""
        found = [self._whole(number, choice) for number, choice in enumerate(self._choices)]
        kind = "chat.completion" if self._is_chat else "text_completion"
        return self._object(kind, found) | {"usage": self._usage()}

    def _whole(self, number: int, choice: Choice) -> dict[str, Any]:
        assert choice.ended is not None
        text, thought = "".join(choice.text), "".join(choice.thought).rstrip()
        found: dict[str, Any] = {"index": number, "finish_reason": REASONS[choice.ended.reason]}
        if self._is_chat:
            message = {"role": "assistant", "content": text, "refusal": None}
            found["message"] = message | ({"reasoning_content": thought} if thought else {})
        else:
            found["text"] = text
        asked = self._talk.asked.logprobs is not None
        found["logprobs"] = self._logprobs(choice, choice.likely) if asked else None
        return found if choice.sources is None else found | {"sources": choice.sources}

    def first(self) -> list[dict[str, Any]]:
        """The pieces that say who speaks."""
        delta = {"role": "assistant", "content": ""}
        every = range(len(self._choices) if self._is_chat else 0)
        return [self._chunk(number, delta, "") for number in every]

    def piece(self, number: int, piece: Piece) -> dict[str, Any]:
        """One piece."""
        delta = {"reasoning_content": piece.thought} if piece.thought else {}
        if piece.text or not delta:
            delta["content"] = piece.text
        return self._chunk(number, delta, piece.text, piece.likely)

    def last(self, number: int) -> dict[str, Any]:
        """What ends the pieces of an answer: the reason, and the sources if they are wanted."""
        choice = self._choices[number]
        assert choice.ended is not None
        found = self._chunk(number, {}, "", reason=REASONS[choice.ended.reason])
        found["choices"][0] |= {} if choice.sources is None else {"sources": choice.sources}
        return found

    def counted(self) -> dict[str, Any]:
        """The last piece of all, with the tokens."""
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return self._object(kind, []) | {"usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        """Tokens: of all that the model saw, of which so many had been read before."""
        talk = self._talk
        ends = [choice.ended for choice in self._choices if choice.ended is not None]
        tokens = sum(ended.tokens for ended in ends)
        thought = sum(ended.reasoning_tokens for ended in ends)
        return {
            "prompt_tokens": talk.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": talk.prompt_tokens + tokens,
            "prompt_tokens_details": {"cached_tokens": talk.cached},
            "completion_tokens_details": {"reasoning_tokens": thought},
        }

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        text: str,
        likely: Sequence[Likely] = (),
        reason: str = "",
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": number, "finish_reason": reason or None}
        own = self._choices[number]
        choice["logprobs"] = self._logprobs(own, likely) if likely else None
        if self._is_chat:
            return self._object("chat.completion.chunk", [choice | {"delta": delta}])
        return self._object("text_completion", [choice | {"text": text}])

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        about = {"id": self._id, "object": kind, "created": self._talk.created}
        return about | {"model": self._talk.model, "choices": choices}

    def _logprobs(self, choice: Choice, likely: Sequence[Likely]) -> dict[str, Any]:
        if not self._is_chat:
            found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": []}
            found["text_offset"] = []
            for each in likely:
                text = self._named(each.token)
                found["tokens"].append(text)
                found["token_logprobs"].append(each.logprob)
                found["top_logprobs"].append({self._named(t): p for t, p in each.others})
                found["text_offset"].append(choice.offset)
                choice.offset += len(text)
            return found
        content = []
        for each in likely:
            top = [self._entry(*pair) for pair in each.others]
            content.append(self._entry(each.token, each.logprob) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._named(token)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": [*text.encode()]}

    def _named(self, token: int) -> str:
        [name] = self._tokenizer.hf.convert_ids_to_tokens([token])
        return self._tokenizer.decode([token]) or name


def event(found: dict[str, Any]) -> bytes:
    """An object as a server-sent event."""
    return f"data: {json.dumps(found, ensure_ascii=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def comment(text: str) -> bytes:
    """A line that keeps a stream alive and that clients leave out."""
    return f": {text}\n\n".encode()
