"""`/show`: one view of the chat, its cache or its model. `/set`: how answers are made and shown."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate, chain

from kvchat.chat.citing import sources_begin
from kvchat.documents import Place
from kvchat.engine.sizes import reserve_of
from kvchat.errors import KvchatError
from kvchat.repl import memory, views
from kvchat.repl.commands.compression import full_spec
from kvchat.repl.commands.context import Context, number
from kvchat.settings.kinds import shown
from kvchat.settings.options import LIVE, live_option
from kvchat.terminal.text import counted, size

EXCERPT = 400  # characters of the prompt shown from either end
WORDS = 8  # first words of a slice of the document
LOOK = 24  # tokens that are decoded for them


def show(context: Context, argument: str) -> None:
    """show what is in effect, or one view

    `/show memory` (also `/memory`): memory usage. `heads`: entries kept per layer and KV head, and
    `heads N` the heads of layer N. `coverage`: what is kept along the documents. `window`: what
    fills the context window. `settings`, `model`, `template`. `prompt`: the exact text that the
    model has seen. Without WHAT: model and settings.
    """
    word, _, rest = argument.partition(" ")
    wanted = [part for part in PARTS if part == word] or [p for p in PARTS if p.startswith(word)]
    if word and (len(wanted) != 1 or (rest and wanted != ["heads"])):
        raise KvchatError(
            "usage", f"/show has no {argument!r}", *(f"/show {part}" for part in wanted or PARTS)
        )
    for part in wanted if word else ("model", "settings"):
        PARTS[part](context, rest.strip())


def _memory(context: Context, argument: str) -> None:
    screen, found = context.screen, memory.breakdown(context.chat)
    screen.tell(f"memory usage · {found.device}")
    screen.tell(f"  {memory.strip(found, screen.width - 2, screen.glyphs)}")
    screen.columns(memory.table(found, screen.glyphs))
    for note in [*memory.notes(found), *memory.on_devices(context.chat)]:
        screen.tell(f"  {note}")


def _heads(context: Context, argument: str) -> None:
    """Also how many tokens merged entries stand for (kvmerger), and how many entries a decoded
    token attends to (pqcache)."""
    chat, screen = context.chat, context.screen
    tokens = len(chat.session.document)
    if not tokens:
        screen.tell("there is no document")
        return
    entries, sets = chat.document_entries(), chat.merge_sets()
    if argument:
        layer = number("/show heads", argument, 0, len(entries) - 1)
        sets = [sets[layer]]
        names = [f"head {head}" for head in range(len(entries[layer]))]
        for head, several in enumerate(sets[0]):
            names[head] += f", sets ≤ {max(several, default=0):,}"
        lines = [f"layer {layer} · KV entries kept of {tokens:,}"]
        counts = list(zip(names, entries[layer], strict=True))
        lines += views.bars(counts, tokens, screen.width, screen.glyphs)
    else:
        lines = views.heads(entries, tokens, screen.width, screen.glyphs)
    lines += views.merged([size for layer in sets for head in layer for size in head])
    if share := chat.attended_share():
        captured = chat.session.cache.captured
        seen = f", {captured:.0%} of the attention by codes" if captured else ""
        lines.append(f"each decoded token attends to {share} of these entries{seen}")
    for line in lines:
        screen.tell(line)


def _coverage(context: Context, argument: str) -> None:
    session, screen = context.chat.session, context.screen
    tokens, config = len(session.document), session.engine.model.config  # of this rank's heads
    if not tokens:
        screen.tell("there is no document")
        return
    kept = [0] * tokens
    for layer, segments in zip(session.cache.layers, context.chat.document_segments(), strict=True):
        if layer.sliding is not None:  # it keeps every entry
            kept = [count + config.num_kv_heads for count in kept]
            continue
        for segment in segments:
            places = [t for name, t in segment.tensors().items() if name.endswith("position")]
            for place in chain.from_iterable(t.tolist() for t in places):
                kept[place] += 1
    cells = min(views.CELLS, screen.width - 2)
    found = views.slices(kept, tokens, config.full_heads, cells)
    decode = session.dialogue.tokenizer.decode
    words = [" ".join(decode(session.document[s.start :][:LOOK]).split()[:WORDS]) for s in found]
    cited = [_token_at(context, at) for at in sources_begin(context.chat)]
    for line in views.coverage(found, words, _places(context), screen.glyphs, cited):
        screen.tell(line)


def _places(context: Context) -> list[tuple[str, int]]:
    """Chapters and pages of the documents, as they are cited, with the token where each begins."""
    book, found, at = context.chat.book, [], 0
    for part, file, known in zip(book.parts, book.files, book.marks, strict=True):
        at += len(part)
        first = at - len(file.text)
        places = known if len(book.files) == 1 or len(known) > 1 else [Place(file.title, 0)]
        found += [(place.name, _token_at(context, first + place.start)) for place in places]
    return found


def _token_at(context: Context, character: int) -> int:
    """The first token of the documents that begins at a character of their text, or later."""
    begins = list(accumulate(context.chat.book.begins, max))
    return min(bisect_left(begins, character), len(begins) - 1)


def _window(context: Context, argument: str) -> None:
    chat, session, screen = context.chat, context.chat.session, context.screen
    files = views.tokens_of_files(chat) if chat.book.files else []
    turns = session.cache.position - len(session.document)
    saved, place = session.document_saved, session.cache.rotary
    turned = place - len(session.document) + saved
    told = session.dialogue.told_tokens if session.turns else 0  # it begins the first turn
    head = max(len(session.document) - sum(files), 0)
    parts = [("template" if told or not chat.book.system else "system prompt, template", head)]
    parts += [(f.title, count) for f, count in zip(chat.book.files, files, strict=True)]
    parts += [("system prompt", told)] if told else []
    parts.append((counted(len(session.turns), "turn"), turned - told))
    if saved:  # it takes fewer positions than it has tokens
        parts = [(chat.book.title, len(session.document) - saved), *parts[-1 - bool(told) :]]
    parts.append(("free", session.limit - place))
    screen.tell(f"context window: {session.limit:,} tokens")
    for line in views.bars(parts, session.limit, screen.width - 2, screen.glyphs):
        screen.tell(f"  {line}")
    reserve = reserve_of(session.limit)
    screen.tell(f"  a document must leave {reserve:,} tokens for questions and answers")
    if turns:
        screen.tell(f"  /clear would free {turned:,} tokens")
    for level in session.levels():
        screen.tell(f"  {level}")


def _model(context: Context, argument: str) -> None:
    chat = context.chat
    engine, config = chat.session.engine, chat.session.engine.config
    refusals = engine.backend.report() if hasattr(engine.backend, "report") else []
    heads = f"{config.num_heads} query heads over {config.num_kv_heads} KV heads"
    context.screen.columns([
        ("model", f"{chat.model.name} ({config.family}), {config.parameters / 1e6:,.1f} M "
         f"parameters, {size(engine.weights_bytes)} in {engine.weights}"),
        ("path", str(chat.model.path)),
        ("computes", f"{str(engine.dtype).removeprefix('torch.')} on {engine.device}"),
        ("attention", engine.backend.name),
        *(("", line) for line in refusals),
        ("decoding", engine.writer.way),
        ("layers", f"{config.num_layers}, {heads} of {config.head_dim}"),
        ("context window", f"{chat.session.limit:,} tokens (the model's: "
         f"{config.context_limit:,})"),
    ])  # fmt: skip


def _settings(context: Context, argument: str) -> None:
    chat = context.chat
    selection, day = "query-agnostic", chat.book.dialogue.day
    if chat.in_view:
        selection = f"for {chat.in_view!r}"
    elif chat.session.by_question and chat.method.needs.queries:
        selection = "anew for every question"
    elif chat.method.needs.sees:
        selection = "by the end of the documents (/select QUESTION: by a question)"
    context.screen.columns(
        [
            ("method", full_spec(chat)),
            ("selection", selection),
            ("full copy", chat.cache.full_copy),
            ("overflow", chat.options.overflow),
            ("prefill chunk", f"{chat.session.engine.chunk:,} tokens"),
            ("chat", context.writer.title),
            *([("cut", str(chat.book.cut))] if chat.book.cut else []),
            *([("date", f"{day}, as the model is told")] if day else []),
            *setting_rows(context, LIVE),
        ]
    )


def _template(context: Context, argument: str) -> None:
    dialogue = context.chat.session.dialogue
    form, kind = dialogue.form, "the model's chat template"
    if not form.is_template:
        kind = f"plain Question / Answer form (chat template: {dialogue.why_plain})"
    parts = ("lead", "joint", "opening", "header", "between")
    rows = [("form", kind), *((part, repr(getattr(form, part))) for part in parts)]
    if thoughts := form.thoughts:
        past = "stay in history" if thoughts.past is None else "are dropped from history"
        rows.append(("thoughts", f"between {thoughts.open} and {thoughts.close}; they {past}"))
    context.screen.columns(rows)


def _prompt(context: Context, argument: str) -> None:
    session = context.chat.session
    ids = [*session.document, *(i for turn in session.turns for i in turn.ids)]
    text = session.dialogue.tokenizer.hf.decode(ids)
    parts = [text]
    if len(text) > 2 * EXCERPT:
        parts = [text[:EXCERPT], "[…]", text[-EXCERPT:]]
    count = f"{len(ids):,} tokens, {len(text):,} characters"
    context.screen.columns([part] for part in (count, *parts))


PARTS: dict[str, Callable[[Context, str], None]] = {
    "memory": _memory,
    "heads": _heads,
    "coverage": _coverage,
    "window": _window,
    "settings": _settings,
    "model": _model,
    "prompt": _prompt,
    "template": _template,
}


def set_(context: Context, argument: str) -> None:
    """show or change the settings, with their origin

    `/set KEY VALUE` changes one. Keys may be shortened. The change holds from the next answer on
    and is saved with the chat.
    """
    chat = context.chat
    name, _, value = argument.partition(" ")
    key = live_option(name).name if name else ""
    if value:
        chat.options = chat.options.changed(key, value.strip(), "/set")
        context.writer.changed(chat)
    context.screen.columns(setting_rows(context, [key] if key else LIVE))
    if key and not value:
        context.screen.tell(f"  takes {LIVE[key].kind.meaning}")


def setting_rows(context: Context, keys: Iterable[str]) -> list[tuple[str, str]]:
    """Settings with their values and where those are from."""
    options = context.chat.options
    values, origins = options.live_values(), options.origins
    return [(key, f"{shown(values[key])}  ({origins.get(key, 'default')})") for key in keys]


def completes(context: Context, typed: str) -> Iterable[str]:
    """Keys, then values of those that have few."""
    key, space, _ = typed.partition(" ")
    if not space:
        return LIVE
    return [f"{key} {value}" for value in LIVE[key].kind.choices] if key in LIVE else []
