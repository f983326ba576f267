"""Commands that draw: memory, rows per head, coverage of the document, the window."""

from itertools import chain

from kvchat.chat import cache_views as views
from kvchat.chat import memory as measured
from kvchat.engine.sizes import reserve_of
from kvchat.errors import KvchatError
from kvchat.repl.commands.context import Context
from kvchat.terminal.text import counted

WORDS = 8  # first words of an empty slice
LOOK = 24  # tokens that are decoded for them


def memory(context: Context, argument: str) -> None:
    """where the memory is: weights, KV, process, free"""
    found = measured.breakdown(context.chat)
    for line in measured.lines(found, context.screen.width, context.screen.glyphs):
        context.screen.tell(line)


def heads(context: Context, argument: str) -> None:
    """kept entries per layer and KV head, or `/heads LAYER`: the heads of one layer

    Where rows were merged (kvmerger), how many tokens they stand for; where a written token chooses
    what it reads (pqcache), how much that is.
    """
    tokens = len(context.chat.session.document)
    rows = context.chat.document_entries()
    sets = context.chat.merge_sets()
    width, glyphs = context.screen.width, context.screen.glyphs
    if argument:
        if not (argument.isascii() and argument.isdecimal()) or int(argument) >= len(rows):
            raise KvchatError(
                "usage", f"/heads {argument}: there are layers 0–{len(rows) - 1}", "/heads 0"
            )
        tokens = tokens if rows[int(argument)] else 0
        layer = int(argument)
        lines = views.one_layer(rows[layer], tokens, layer, width, glyphs, sets[layer])
    else:
        lines = views.heads(rows, tokens, width, glyphs)
        lines += views.merged([size for layer in sets for head in layer for size in head])
    if share := context.chat.reads():
        captured = context.chat.session.cache.captured
        seen = f", {captured:.0%} of the attention by codes" if captured else ""
        lines.append(f"a written token reads {share} of these entries{seen}")
    for line in lines:
        context.screen.tell(line)


def coverage(context: Context, argument: str) -> None:
    """what is kept along the document"""
    session = context.chat.session
    tokens = len(session.document)
    kept = [0] * tokens
    for layer, segments in zip(session.cache.layers, context.chat.document_segments(), strict=True):
        if layer.sliding is not None:  # it keeps every entry
            kept = [count + session.engine.config.num_kv_heads for count in kept]
            continue
        for segment in segments:
            places = [t for name, t in segment.tensors().items() if name.endswith("position")]
            for place in chain.from_iterable(t.tolist() for t in places):
                kept[place] += 1
    if not tokens or not any(kept):
        context.screen.tell("no document is read")
        return
    config = session.engine.config
    cells = min(views.CELLS, context.screen.width - 2)
    found = views.slices(kept, tokens, config.num_layers * config.num_kv_heads, cells)
    decode = session.dialogue.tokenizer.decode
    words = [" ".join(decode(session.document[s.start :][:LOOK]).split()[:WORDS]) for s in found]
    for line in views.coverage(found, words, _places(context, tokens), context.screen.glyphs):
        context.screen.tell(line)


def ctx(context: Context, argument: str) -> None:
    """what fills the window"""
    chat, session = context.chat, context.chat.session
    files = views.near(chat) if chat.book.files else []
    turns = sum(len(turn.ids) for turn in session.turns)
    parts = [("system, template", max(len(session.document) - sum(files), 0))]
    parts += [(f.title, count) for f, count in zip(chat.book.files, files, strict=True)]
    parts += [(counted(len(session.turns), "turn"), session.cache.position - len(session.document))]
    width, glyphs = context.screen.width, context.screen.glyphs
    for line in views.window(parts, session.limit, width, glyphs):
        context.screen.tell(f"  {line}")
    reserve = f"{reserve_of(session.limit):,}"
    context.screen.tell(f"  a document must leave {reserve} for questions and answers")
    if turns > sum(files):
        context.screen.tell(f"  /clear would free {turns:,}")
    elif files:
        context.screen.tell(f"  the document is the largest part; /clear would free {turns:,}")


def _places(context: Context, tokens: int) -> list[tuple[str, int]]:
    """Chapters and pages with the token where each begins, by their share of the text."""
    files = context.chat.book.files
    if context.chat.book.cut or not files:
        return []  # places of what was cut out would be wrong
    whole = sum(len(file.text) for file in files)
    before, found = 0, []
    for file in files:
        several = len(file.places) > 1
        for place in file.places:
            name = place.name if several else file.title
            found.append((name, tokens * (before + place.start) // max(whole, 1)))
        before += len(file.text)
    return found
