"""What a client asks, read from OpenAI's JSON. Everything in it is foreign: each value is of its
kind and within bounds, or the request is refused with its name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvchat.engine.decode.sampling import Leaning, Sampling
from kvchat.errors import KvchatError
from kvchat.serve.refusals import Refusal

SYSTEM, USER, ASSISTANT = ("system", "developer"), "user", "assistant"
MOST_LOGPROBS, MOST_STOPS, MOST_MESSAGES = 20, 16, 10_000
MOST_CHOICES, MOST_BIASED = 16, 1024
# What is asked for in vain, and what there is in its place; empty values ask for nothing.
UNKNOWN = {
    "tools": "tools are not called; leave them out",
    "functions": "functions are not called; leave them out",
    "tool_choice": "tools are not called; leave it out",
    "function_call": "functions are not called; leave it out",
    "audio": "answers are text",
    "web_search_options": "nothing is searched for",
}
NOTHING: tuple[Any, ...] = (None, [], {}, "none", "auto")


@dataclass(frozen=True)
class Asked:
    """A question with what came before it, and how it is to be answered.

    `file` is the id of a document that the first message names. `sampled` are the values of
    `Sampling` that were given. `logprobs`: how many likely tokens are wanted beside each that is
    drawn. `form` is the form of the answer as JSON Schema ({}: any JSON object), or None.
    """

    model: str
    question: str
    system: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    file: str | None = None
    sampled: Mapping[str, float | int] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    thinks: bool | None = None
    logprobs: int | None = None
    stream: bool = False
    include_usage: bool = False
    form: Mapping[str, Any] | None = None
    grammar: str | None = None
    is_chat: bool = True
    sources: bool = False  # whether it is wanted what of the document the answer is from
    n: int = 1  # answers
    leaning: Leaning | None = None
    ignore_eos: bool = False  # for measurements: an answer ends by its length alone

    def sampling(self, usual: Sampling) -> Sampling:
        """How tokens are drawn, where the client does not say so as is usual here."""
        try:
            return Sampling(**{**vars(usual), **self.sampled})
        except KvchatError as error:
            raise Refusal(400, error.message.replace("--", "")) from None


def read_json(data: bytes) -> dict[str, Any]:
    """The object of a body. Raises Refusal."""
    try:
        found = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8: byte {error.start} of {len(data):,}") from None
    except RecursionError:
        raise Refusal(400, "the body's JSON is nested too deeply") from None
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Refusal(400, "the body is no JSON object")
    return found


def chat(raw: Mapping[str, Any]) -> Asked:
    """What a body of /v1/chat/completions asks. Raises Refusal."""
    system, turns, question, file = _messages(raw)
    probs = None
    if _value(raw, "logprobs", bool, False):
        probs = _whole(raw, "top_logprobs", 0, MOST_LOGPROBS) or 0
    form, grammar = _form(raw)
    return Asked(
        **_common(raw), question=question, system=system, turns=turns, file=file, logprobs=probs,
        thinks=_thinks(raw), form=form, grammar=grammar,
        sources=_value(raw, "sources", bool, False),
    )  # fmt: skip


def completion(raw: Mapping[str, Any]) -> Asked:
    """What a body of /v1/completions asks: a text to go on with. Raises Refusal."""
    for name in ("suffix", "best_of", "echo"):
        if raw.get(name) not in (None, False, 1):
            raise Refusal(400, f"{name} is not supported", name)
    prompt = raw.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise Refusal(400, "prompt must be a text", "prompt")
    probs = _whole(raw, "logprobs", 0, MOST_LOGPROBS)
    return Asked(**_common(raw), question=sound(prompt), logprobs=probs, is_chat=False)


def _common(raw: Mapping[str, Any]) -> dict[str, Any]:
    none = "none" in (raw.get("tool_choice"), raw.get("function_call"))
    for name, why in UNKNOWN.items():
        if raw.get(name) not in NOTHING and not (none and name in ("tools", "functions")):
            raise Refusal(400, why, name, "unsupported_parameter")
    if raw.get("modalities") not in (None, [], ["text"]):
        raise Refusal(400, "answers are text", "modalities", "unsupported_parameter")
    model = _value(raw, "model", str, "")
    stop = raw.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        raise Refusal(400, f"stop must be a text or at most {MOST_STOPS} of them", "stop")
    if not all(isinstance(each, str) and 0 < len(each) <= 1000 for each in stops):
        raise Refusal(400, "stop must be texts of 1 to 1,000 characters", "stop")
    options = _value(raw, "stream_options", dict, {})
    most = _most(raw, "max_completion_tokens") or _most(raw, "max_tokens")
    return {
        "n": _whole(raw, "n", 1, MOST_CHOICES) or 1,
        "leaning": _leaning(raw),
        "model": model,
        "sampled": _sampled(raw),
        "max_tokens": most,
        "stop": tuple(sound(each) for each in stops),
        "stream": _value(raw, "stream", bool, False),
        "include_usage": options.get("include_usage") is True,
        "ignore_eos": _value(raw, "ignore_eos", bool, False),
    }


def _most(raw: Mapping[str, Any], name: str) -> int | None:
    """Tokens of an answer; -1, as some programs have it, says nothing."""
    return None if raw.get(name) == -1 else _whole(raw, name, 1, 2**31)


def _leaning(raw: Mapping[str, Any]) -> Leaning | None:
    presence, frequency = (_number(raw, f"{name}_penalty", -2, 2) or 0.0
                           for name in ("presence", "frequency"))  # fmt: skip
    asked = _value(raw, "logit_bias", dict, {})
    if len(asked) > MOST_BIASED:
        raise Refusal(400, f"logit_bias has more than {MOST_BIASED:,} tokens", "logit_bias")
    bias = {}
    for token in asked:
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise Refusal(400, f"logit_bias: {token[:20]!r} is no token's number", "logit_bias")
        bias[int(token)] = _number(asked, token, -100, 100) or 0.0
    return Leaning(presence, frequency, bias) if presence or frequency or bias else None


def _number(raw: Mapping[str, Any], name: str, least: int, most: int) -> float | None:
    value = raw.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Refusal(400, f"{name} must be a number", name)
    if not least <= value <= most:
        raise Refusal(400, f"{name} must be between {least} and {most}", name)
    return float(value)


def _sampled(raw: Mapping[str, Any]) -> dict[str, float | int]:
    found: dict[str, float | int] = {}
    for name, most in (("temperature", 100), ("top_p", 1), ("min_p", 1), ("repeat_penalty", 100)):
        if (value := _number(raw, name, 0, most)) is not None:
            found[name] = value
    if found.get("top_p") == 0:  # the likeliest token alone
        found |= {"top_p": 1.0, "temperature": 0.0}
    for name in ("top_k", "seed"):
        if (number := _whole(raw, name, -(2**63), 2**63 - 1)) is not None:
            found[name] = max(number, 0) if name == "top_k" else number % 2**63
    return found


def _thinks(raw: Mapping[str, Any]) -> bool | None:
    told = _value(raw, "chat_template_kwargs", dict, {}).get("enable_thinking")
    if isinstance(told, bool):
        return told
    effort = raw.get("reasoning_effort")
    return False if effort in ("none", "minimal") else None


def _form(raw: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, str | None]:
    grammar = _value(raw, "grammar", str, "") or None
    asked = _value(raw, "response_format", dict, {})
    kind = asked.get("type", "text")
    if kind == "text":
        return None, grammar
    if grammar:
        raise Refusal(400, "grammar and response_format exclude each other", "grammar")
    if kind == "json_object":
        return {"type": "object"}, None
    about = asked.get("json_schema")
    schema = about.get("schema") if isinstance(about, dict) else None
    if kind == "json_schema" and isinstance(schema, dict):
        return schema, None
    known = "text, json_object or json_schema with a json_schema.schema"
    raise Refusal(400, f"response_format must be {known}", "response_format")


def _messages(
    raw: Mapping[str, Any],
) -> tuple[str, tuple[tuple[str, str], ...], str, str | None]:
    """System prompt, questions with their answers, the question, and the file that is named."""
    messages = raw.get("messages")
    if not isinstance(messages, list) or not 0 < len(messages) <= MOST_MESSAGES:
        raise Refusal(400, f"messages must be a list of 1 to {MOST_MESSAGES:,}", "messages")
    system: list[str] = []
    said: list[tuple[str, str]] = []  # role and text; neighbours of one role are one
    file = None
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise Refusal(400, f"{where} must be an object", where)
        role = message.get("role")
        text, named = _content(message.get("content"), where)
        if message.get("tool_calls") or role in ("tool", "function"):
            raise Refusal(400, f"{where}: tools are not called", where, "unsupported_parameter")
        if role in SYSTEM:
            system.append(text)
            continue
        if role not in (USER, ASSISTANT):
            raise Refusal(400, f"{where}.role must be system, user or assistant", where)
        if named is not None:
            if file not in (None, named) or role != USER:
                raise Refusal(400, f"{where}: one file for a conversation", where)
            file = named
        if said and said[-1][0] == role:
            said[-1] = (role, "\n\n".join(filter(None, (said[-1][1], text))))
        else:
            said.append((role, text))
    if not said or said[-1][0] != USER:
        raise Refusal(400, "the last message must be the user's", "messages")
    if said[0][0] == ASSISTANT:  # a greeting that the client shows
        said.insert(0, (USER, ""))
    texts = [text for _, text in said]
    turns = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    return "\n\n".join(filter(None, system)), turns, texts[-1], file


def _content(content: Any, where: str) -> tuple[str, str | None]:
    """The text of a message, and the id of the file that it names."""
    if content is None:
        return "", None
    if isinstance(content, str):
        return sound(content), None
    texts, file = [], None
    for part in content if isinstance(content, list) else [None]:
        part = part if isinstance(part, dict) else {}
        kind = part.get("type")
        said = part.get("refusal" if kind == "refusal" else "text")
        if kind in ("text", "input_text", "output_text", "refusal") and isinstance(said, str):
            texts.append(sound(said))
        elif kind in ("file", "input_file"):
            if file is not None:
                raise Refusal(400, f"{where}: one file for a conversation", where)
            about = part.get("file", part)
            file = about.get("file_id") if isinstance(about, dict) else None
            if not isinstance(file, str):
                raise Refusal(400, f"{where}: a file is named by its file_id", where)
        else:
            raise Refusal(400, f"{where}.content must be text", where, "unsupported_content")
    return "\n\n".join(texts), file


def _value(raw: Mapping[str, Any], name: str, kind: type, usual: Any) -> Any:
    value = raw.get(name)
    if value is None:
        return usual
    if not isinstance(value, kind):
        names = {bool: "true or false", str: "a text", dict: "an object"}
        raise Refusal(400, f"{name} must be {names[kind]}", name)
    return value


def _whole(raw: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = raw.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Refusal(400, f"{name} must be a whole number from {least:,} to {most:,}", name)
    return value


def sound(text: str) -> str:
    """A text of JSON, whose escapes may make halves of characters."""
    return text.encode("utf-8", "replace").decode("utf-8")
