"""The documents that gates are fitted to, of several kinds: prose, plays, other languages, code,
and, made here, notes with facts, tables and logs.

Prose is from "The Memoirs of Sherlock Holmes" (Doyle, 1894) and plays are Shakespeare's, both in
the public domain; other languages are German, French and Spanish articles of the United Nations'
declaration of human rights. Code is kvchat's own.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import kvchat

HERE = Path(__file__).parent / "texts"
CODE = ("documents/__init__.py", "repl/repl.py", "terminal/markdown.py")
LENGTH = 7500  # characters of a document, about
HELD_OUT = ("prose-8.txt", "play-3.txt", "notes 3", "table 2", "log 2", CODE[-1])

NAMES = ("Albin", "Berta", "Corin", "Dagny", "Emeric", "Flora", "Gideon", "Hella", "Ilya", "Jorun")
FAMILIES = ("Ashby", "Borg", "Carver", "Duval", "Ekman", "Fenner", "Gorse", "Holt", "Imbert", "Ju")
TOWNS = ("Alding", "Borrow", "Carne", "Dunholm", "Eversley", "Falk", "Garrick", "Haven", "Istra")
GOODS = ("rope", "lamp oil", "barley", "tin plate", "glass", "tar", "wool", "salt", "paper", "ale")
PARTS = ("scheduler", "gateway", "archive", "mailer", "billing", "search", "cache", "importer")
DONE = ("accepted", "retried after timeout", "refused: quota reached", "completed", "queued")


def documents() -> Iterator[tuple[str, str]]:
    """Name and text of each document."""
    for path in sorted(HERE.glob("*.txt")):
        yield path.name, path.read_text("utf-8")
    for name in CODE:
        yield name, (Path(kvchat.__file__).parent / name).read_text("utf-8")[:LENGTH]
    for number in (1, 2, 3):
        prose = (HERE / f"prose-{number + 2}.txt").read_text("utf-8")
        yield f"notes {number}", notes(Random(number), prose)
    for number in (1, 2):
        yield f"table {number}", table(Random(10 + number))
        yield f"log {number}", log(Random(20 + number))


def notes(rng: Random, prose: str) -> str:
    """Prose with facts about people and things between its paragraphs."""
    paragraphs = prose.split("\n\n")
    for _ in range(24):
        who = f"{rng.choice(NAMES)} {rng.choice(FAMILIES)}"
        fact = rng.choice(
            (
                f"The key of the {rng.choice(GOODS)} store is number {rng.randrange(100, 9999)}.",
                f"{who} lives in {rng.choice(TOWNS)} and is {rng.randrange(19, 88)} years old.",
                f"{who} paid {rng.randrange(3, 900)} crowns for {rng.choice(GOODS)}.",
                f"The password of {who} is {rng.choice(TOWNS).lower()}{rng.randrange(10, 99)}.",
                f"{who} met {rng.choice(NAMES)} {rng.choice(FAMILIES)} in {rng.choice(TOWNS)}.",
                f"The train to {rng.choice(TOWNS)} leaves at {rng.randrange(24)}:"
                f"{rng.randrange(60):02}.",
            )
        )
        at = rng.randrange(len(paragraphs))
        paragraphs[at] += f" {fact}"
    return "\n\n".join(paragraphs)[: LENGTH + 1000]


def table(rng: Random) -> str:
    """Orders, a line each, as comma-separated values."""
    lines = ["order,customer,town,goods,amount,price,date"]
    while sum(map(len, lines)) < LENGTH // 2:
        who = f"{rng.choice(NAMES)} {rng.choice(FAMILIES)}"
        day = f"{rng.randrange(1990, 2030)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"
        lines.append(
            f"{rng.randrange(10**5, 10**6)},{who},{rng.choice(TOWNS)},{rng.choice(GOODS)},"
            f"{rng.randrange(1, 500)},{rng.randrange(100, 99999) / 100:.2f},{day}"
        )
    return "\n".join(lines) + "\n"


def log(rng: Random) -> str:
    """What services say, a line each."""
    lines: list[str] = []
    clock = 8 * 3600
    while sum(map(len, lines)) < LENGTH // 2:
        clock += rng.randrange(1, 40)
        time = f"{clock // 3600:02}:{clock // 60 % 60:02}:{clock % 60:02}.{rng.randrange(1000):03}"
        lines.append(
            f"{time} {rng.choice(('INFO', 'INFO', 'WARN', 'ERROR'))} {rng.choice(PARTS)}"
            f"[{rng.randrange(100, 9999)}]: request {rng.randrange(16**6):06x} from "
            f"{rng.choice(NAMES).lower()} {rng.choice(DONE)} in {rng.randrange(2, 4000)} ms"
        )
    return "\n".join(lines) + "\n"
