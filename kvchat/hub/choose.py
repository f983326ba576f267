"""The model where none is asked for: the bundled one for its own samples; for any other document
the best of this machine that fits, else a download that is offered. No torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from kvchat.documents import Document
from kvchat.engine.sizes import reserve_of
from kvchat.errors import KvchatError
from kvchat.hub import catalog
from kvchat.hub.describe import Described, described
from kvchat.hub.places import CHECKOUT, PACKAGE, Aliases, at_hand
from kvchat.machine.fit import Room, needed
from kvchat.terminal.text import clean, counted, size

PER_TOKEN = 3.5  # characters, of plain English prose about 4.5
BRISK = 4_500_000_000  # parameters that a processor decodes at the speed of reading, about

WORLD = ("valley", "county")  # samples; the others are for chat models


@dataclass(frozen=True)
class Offered:
    """An entry of the catalog, for this machine and document."""

    entry: catalog.Entry
    needed: int
    fits: bool


def of_the_sample(documents: Sequence[Document]) -> bool:
    """Whether the documents are samples of the small world that the bundled model can read."""
    known = {
        hashlib.sha256(file.read_bytes()).hexdigest()
        for top in (PACKAGE, CHECKOUT)
        for name in WORLD
        if (file := top / "samples" / f"{name}.txt").is_file()
    }
    return bool(documents) and all(document.digest in known for document in documents)


def tokens_of(documents: Sequence[Document]) -> int | None:
    """About how many tokens; None without a document."""
    characters = sum(len(document.text) for document in documents)
    return round(characters / PER_TOKEN) if documents else None


def best(aliases: Aliases, room: Room, tokens: int | None) -> tuple[Described | None, str]:
    """The model of this machine to take, and why: chat models before base models, those whose
    window takes the document before others, then the largest that fits; on a processor those that
    answer briskly first. None, and what was looked at, if none fits.
    """
    seen = [described(found, room, tokens) for found in at_hand(aliases)]
    seen = [model for model in seen if not model.toy]
    able = [model for model in seen if model.fits in ("yes", "int4")]
    if not able:
        return None, _none(seen, room)
    # one model under two names is no choice
    chosen = max(able, key=lambda model: _rank(model, room, tokens))
    others = len({model.path.resolve() for model in able}) - 1
    why = [f"of {counted(others + 1, 'local model')} that fit" if others else "the local model"]
    if others and not room.cuda and chosen.parameters <= BRISK:
        why = [f"the largest of {others + 1} local models that answers briskly on a CPU"]
    elif others:
        why = [f"the best of {others + 1} local models that fit"]
    why.append(f"{size(chosen.needed)} of {room}" if chosen.fits == "yes" else "--weights int4")
    return chosen, ", ".join(why)


def _rank(model: Described, room: Room, tokens: int | None) -> tuple[object, ...]:
    brisk = room.cuda or model.parameters <= BRISK
    return (
        takes(model.window, tokens),
        model.chat,
        model.fits == "yes",
        brisk,
        model.parameters if brisk else -model.parameters,
        -model.held,
    )


def takes(window: int, tokens: int | None) -> bool:
    """Whether a context window takes a document and leaves room for questions."""
    return tokens is None or tokens + reserve_of(window) <= window


def _none(seen: Sequence[Described], room: Room) -> str:
    if not seen:
        return "there is no model on this machine"
    least = min((model.needed for model in seen if model.needed), default=0)
    if least:
        return f"no local model fits (the smallest needs {size(least)}; {room})"
    return f"{counted(len(seen), 'local model')}, none of which can be loaded (kvchat models)"


def offered(room: Room, tokens: int | None) -> list[Offered]:
    """The catalog for this machine, in its order."""
    rows = []
    for entry in catalog.entries():
        wanted = needed(entry.config, entry.held, room, tokens)
        rows.append(Offered(entry, wanted, wanted <= room.free))
    return rows


def recommended(rows: Sequence[Offered], room: Room, tokens: int | None) -> Offered | None:
    """The row to take: by the same order as `best`."""
    able = [row for row in rows if row.fits]

    def rank(row: Offered) -> tuple[object, ...]:
        count = row.entry.config.parameters
        brisk = room.cuda or count <= BRISK
        return takes(row.entry.window, tokens), brisk, count if brisk else -count

    return max(able, key=rank, default=None)


def nothing(why: str, row: Offered | None) -> KvchatError:
    """The error where nobody can be asked, or the answer was no."""
    pull = f"kvchat models pull {row.entry.name}" if row else "kvchat models pull ORG/REPO"
    told = f"  ({size(row.entry.bytes)}, {row.entry.licence})" if row else ""
    return KvchatError(
        "model",
        f"no model given (-m) or configured, and {clean(why)}; the bundled demo model reads its "
        "samples only",
        f"{pull}{told}",
        f"-m {row.entry.name if row else 'NAME'}  (once it is there)",
        "-m FOLDER, -m model.gguf or -m ollama:NAME",
    )
