"""The options of a chat: what was given, and what follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.sizes import MAX_TOKENS
from kvchat.errors import KvchatError
from kvchat.settings.chat_options import ChatOptions
from kvchat.settings.option import Option, options_of
from kvchat.settings.program_options import ProgramOptions

SAVED_CHAT = "saved chat"  # an origin
INSTRUCTION = "Summarise the document."  # neutral: what it looks at, any question may need


@dataclass(frozen=True)
class Options(ProgramOptions, ChatOptions):  # a dataclass has the fields of its last base first
    """The options of `kvchat chat` as they were settled. `origins` says where a value is from."""

    # From config.toml and saved chats alone.
    loaders: Mapping[str, list[str]] = field(default_factory=dict)  # commands by suffix
    aliases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of models
    method_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by method
    texts: Mapping[str, str] = field(default_factory=dict)  # saved with a chat, in no file
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Where a value is from; `flag` if nothing else is known."""
        return self.origins.get(name, "flag")

    def usual_of(self, spec: str) -> list[str]:
        """`key=value` of `[methods.NAME]` for the method of a spec."""
        name = spec.partition(":")[0].partition("@")[0]
        return [f"{key}={value}" for key, value in self.method_defaults.get(name, {}).items()]

    @property
    def method_pairs(self) -> list[str]:
        """`key=value` of the method from config.toml, a saved chat and flags; later ones win."""
        bits = [f"bits={self.kv_bits}"] if self.kv_bits else []
        return [*self.usual_of(self.method), *self.method_options, *bits]

    def changed(self, name: str, value: Any, origin: str) -> "Options":
        """The same with one other value, that is read like a flag's. Raises KvchatError."""
        chosen = OPTIONS[name].kind.read(f"{name}:", value) if isinstance(value, str) else value
        return replace(self, **{name: chosen}, origins={**self.origins, name: origin})

    @property
    def cascade(self) -> tuple[int, int] | None:
        """Levels and their entries, if the conversation is not to end."""
        if self.tail == "off":
            return None
        levels, _, size = self.tail.removeprefix("cascade:").partition("x")
        return int(levels), int(size)

    @property
    def folds(self) -> bool:
        """Whether old turns are compressed."""
        return bool(self.tail_budget or self.cascade)

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn; what nobody gave is the engine's default."""
        values = {name: getattr(self, name) for name in SAMPLING}
        return Sampling(**{name: value for name, value in values.items() if value is not None})

    @property
    def longest(self) -> int:
        """Most tokens of an answer."""
        return self.max_tokens or MAX_TOKENS

    @property
    def thinks(self) -> bool | None:
        """Whether the model is told to think before it answers; None: as its template has it."""
        return None if self.think is None else self.think != "off"

    @property
    def foreseen(self) -> Sequence[str]:
        """Questions that are known before the prefill, and choose what is kept of the document."""
        if self.select == "instruction":
            return [INSTRUCTION]
        goes_on = self.last or self.resume or self.session
        known = self.select == "question" and self.keep_full in ("", "off") and not goes_on
        return self.prompts if known else []

    @property
    def full_copy(self) -> str:
        """Where all entries of the document stay: off, host or disk; choosing by each question as
        it comes needs it."""
        asked = self.select == "question" and not self.foreseen
        return self.keep_full or ("host" if asked else "off")

    @property
    def by_question(self) -> bool:
        """Whether every question chooses what is kept."""
        return self.full_copy != "off" and self.select not in ("document", "instruction")

    @property
    def streams(self) -> bool:
        """Whether a document that exceeds the context window is read part by part."""
        return self.overflow == "stream"

    @property
    def machine_readable(self) -> bool:
        """Whether stdout carries JSON."""
        return self.json or self.jsonl

    def live_values(self) -> dict[str, Any]:
        """What `/set` can change, as it is in effect."""
        drawn = vars(self.sampling) | {"max_tokens": self.longest, "think": self.think or "show"}
        return {name: drawn.get(name, getattr(self, name)) for name in LIVE}


OPTIONS: Mapping[str, Option] = options_of(Options)
LIVE = {name: each for name, each in OPTIONS.items() if each.live}
SAMPLING = tuple(Sampling.__dataclass_fields__)
assert {"model", "stop", *SAMPLING} <= OPTIONS.keys()


def live_option(name: str) -> Option:
    """The option that `/set name` means: a name or the beginning of one, with - or _.

    Raises KvchatError.
    """
    name = name.replace("-", "_")
    found = [key for key in LIVE if key == name] or [key for key in LIVE if key.startswith(name)]
    if len(found) == 1:
        return LIVE[found[0]]
    close = found or get_close_matches(name, LIVE, n=1)
    hint = f"; did you mean {', '.join(close)}?" if close else f"; there are {', '.join(LIVE)}"
    raise KvchatError("usage", f"no setting {name!r}{hint}", *(f"/set {key}" for key in close))
