"""Answers in OpenAI's JSON, whole and in pieces."""

import json
import secrets
from collections.abc import Sequence
from typing import Any

from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.serve.answers import Talk
from kvchat.serve.asker import Ended, Likely, Piece

# An answer that went round in circles is one that was cut.
REASONS = {"stop": "stop", "length": "length", "repetition": "length"}
Sources = Sequence[dict[str, Any]] | None


class Reply:
    """The JSON of one answer. `tokenizer` says what tokens are called."""

    def __init__(self, talk: Talk, tokenizer: Tokenizer):
        self._talk, self._tokenizer = talk, tokenizer
        self._is_chat = talk.asked.is_chat
        self._id = ("chatcmpl-" if self._is_chat else "cmpl-") + secrets.token_hex(12)
        self._text: list[str] = []
        self._thought: list[str] = []
        self._likely: list[Likely] = []
        self._offset = 0

    def take(self, piece: Piece) -> None:
        """Keep a piece for `whole`."""
        self._text.append(piece.text)
        self._thought.append(piece.thought)
        self._likely += piece.likely

    def whole(self, ended: Ended, sources: Sources) -> dict[str, Any]:
        """The answer in one object."""
        text, thought = "".join(self._text), "".join(self._thought).rstrip()
        choice: dict[str, Any] = {"index": 0, "finish_reason": REASONS[ended.reason]}
        probs = self._logprobs(self._likely) if self._talk.asked.logprobs is not None else None
        if self._is_chat:
            message = {"role": "assistant", "content": text, "refusal": None}
            choice["message"] = message | ({"reasoning_content": thought} if thought else {})
        else:
            choice["text"] = text
        choice["logprobs"] = probs
        choice |= {} if sources is None else {"sources": sources}
        kind = "chat.completion" if self._is_chat else "text_completion"
        return self._object(kind, [choice]) | {"usage": self.usage(ended)}

    def first(self) -> dict[str, Any] | None:
        """The piece that says who speaks."""
        return self._chunk({"role": "assistant", "content": ""}, "") if self._is_chat else None

    def piece(self, piece: Piece) -> dict[str, Any]:
        """One piece."""
        delta = {"reasoning_content": piece.thought} if piece.thought else {}
        if piece.text or not delta:
            delta["content"] = piece.text
        return self._chunk(delta, piece.text, piece.likely)

    def last(self, ended: Ended, sources: Sources) -> list[dict[str, Any]]:
        """What ends the pieces: the reason, the sources and the tokens if they are wanted."""
        found = [self._chunk({}, "", reason=REASONS[ended.reason])]
        found[0]["choices"][0] |= {} if sources is None else {"sources": sources}
        if self._talk.asked.include_usage:
            kind = "chat.completion.chunk" if self._is_chat else "text_completion"
            found.append(self._object(kind, []) | {"usage": self.usage(ended)})
        return found

    def usage(self, ended: Ended) -> dict[str, Any]:
        """Tokens: of all that the model saw, of which so many had been read before."""
        talk = self._talk
        return {
            "prompt_tokens": talk.prompt_tokens,
            "completion_tokens": ended.tokens,
            "total_tokens": talk.prompt_tokens + ended.tokens,
            "prompt_tokens_details": {"cached_tokens": talk.cached},
            "completion_tokens_details": {"reasoning_tokens": ended.reasoning_tokens},
        }

    def _chunk(
        self, delta: dict[str, Any], text: str, likely: Sequence[Likely] = (), reason: str = ""
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason or None}
        choice["logprobs"] = self._logprobs(likely) if likely else None
        if self._is_chat:
            return self._object("chat.completion.chunk", [choice | {"delta": delta}])
        return self._object("text_completion", [choice | {"text": text}])

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        about = {"id": self._id, "object": kind, "created": self._talk.created}
        return about | {"model": self._talk.model, "choices": choices}

    def _logprobs(self, likely: Sequence[Likely]) -> dict[str, Any]:
        if not self._is_chat:
            found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": []}
            found["text_offset"] = []
            for each in likely:
                text = self._named(each.token)
                found["tokens"].append(text)
                found["token_logprobs"].append(each.logprob)
                found["top_logprobs"].append({self._named(t): p for t, p in each.others})
                found["text_offset"].append(self._offset)
                self._offset += len(text)
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
