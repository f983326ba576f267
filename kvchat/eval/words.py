"""The closed word lists of the synthetic world, as `words.toml` beside this file has them."""

import tomllib
from pathlib import Path

_LISTS = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))

FIRST: list[str] = _LISTS["first"].split()
LAST: list[str] = _LISTS["last"].split()
VALUES: dict[str, list[str]] = {name: text.split() for name, text in _LISTS["values"].items()}
RELATIONS = list(VALUES)
SLOTS: dict[str, list[str]] = {name: text.split() for name, text in _LISTS["slots"].items()}

# Sentences; `{noun}` and the like are slots. Those that stand several times are drawn more often.
FILLER: list[str] = _LISTS["filler"]
LEADS: list[str] = _LISTS["leads"]
TAILS: list[str] = _LISTS["tails"]
QUESTIONS: list[str] = _LISTS["questions"]
FACT: str = _LISTS["fact"]
ANSWER: str = _LISTS["answer"]
UNKNOWN: str = _LISTS["unknown"]
