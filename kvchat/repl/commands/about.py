"""Commands that explain: keys, effective settings, the prompt as the model sees it."""

from collections.abc import Callable, Sequence

from kvchat.engine.methods.naming import method_options, name_of
from kvchat.errors import KvchatError
from kvchat.repl.commands.context import Context, Quit
from kvchat.settings.settings import KEYS, shown
from kvchat.terminal import clipboard
from kvchat.terminal.markdown_blocks import code_blocks
from kvchat.terminal.text import clean, counted, size

KEY_BINDINGS = (
    ("Enter", "send"),
    ("Alt-Enter, Esc Enter", "new line"),
    ('"""', "begins and ends a text of several lines"),
    ("Tab", "complete commands, keys, values, paths and chats"),
    ("Up, Down; Ctrl-R; →", "history; search in it; take the suggestion"),
    ("Ctrl-C", "stop an answer or a reading; at the prompt twice: quit"),
    ("Ctrl-D", "quit, on an empty line"),
    ("Ctrl-G, Ctrl-X Ctrl-E", "edit the line in $EDITOR"),
    ("F2", "memory below the prompt, on or off"),
    ("Ctrl-L, Ctrl-Z", "clear the screen, suspend"),
)
EXCERPT = 400  # characters of the prompt shown from either end
Row = tuple[str, ...]


def keys(context: Context, argument: str) -> None:
    """what the keys do"""
    context.screen.rows(KEY_BINDINGS)


def copy(context: Context, argument: str) -> None:
    """copy the last answer, or `/copy N`: its code block N"""
    turns = context.chat.session.turns
    if not turns:
        raise KvchatError("usage", "nothing has been asked: there is nothing to copy")
    text = clean(turns[-1].answer.strip())
    if argument:
        blocks = code_blocks(text)
        number = int(argument) if argument.isascii() and argument.isdecimal() else 0
        if not 1 <= number <= len(blocks):
            raise KvchatError(
                "usage", f"/copy {argument}: the answer has {counted(len(blocks), 'code block')}"
            )
        text = blocks[number - 1]
    where = clipboard.copy(text)
    context.screen.tell(f"{counted(len(text), 'character')} copied by {where}")


def quit_(context: Context, argument: str) -> None:
    """leave (also Ctrl-D); the chat is saved"""
    raise Quit


def show(context: Context, argument: str) -> None:
    """what is in effect; `/show WHAT` shows model, template, prompt or config alone

    `prompt` is the exact text that the model has seen, its length in tokens, and both ends of it.
    """
    wanted = [part for part in PARTS if part.startswith(argument)] if argument else ["all"]
    if len(wanted) != 1:
        raise KvchatError(
            "usage", f"/show has no {argument!r}", *(f"/show {part}" for part in PARTS)
        )
    parts = ("model", "config") if wanted == ["all"] else wanted
    context.screen.rows(row for part in parts for row in PARTS[part](context))


def _model(context: Context) -> Sequence[Row]:
    chat = context.chat
    engine, config = chat.session.engine, chat.session.engine.config
    refusals = engine.backend.report() if hasattr(engine.backend, "report") else []
    heads = f"{config.num_heads} query heads over {config.num_kv_heads} KV heads"
    return [
        ("model", f"{chat.model.name} ({config.family}), {config.parameters / 1e6:,.1f} M "
         f"parameters, {size(engine.weights_bytes)} in {engine.weights}"),
        ("folder", str(chat.model.folder)),
        ("computes", f"{str(engine.dtype).removeprefix('torch.')} on {engine.device}"),
        ("attention", engine.backend.name),
        *(("", line) for line in refusals),
        ("decoding", engine.writer.way or "nothing so far"),
        ("layers", f"{config.num_layers}, {heads} of {config.head_dim}"),
        ("window", f"{chat.session.limit:,} tokens (the model's: {config.context_limit:,})"),
    ]  # fmt: skip


def _config(context: Context) -> Sequence[Row]:
    chat = context.chat
    values = method_options(chat.method).items()
    spec = ", ".join([f"budget={chat.method.budget}", *(f"{k}={v}" for k, v in values)])
    chosen = (
        "by the end of the document (/reread)" if chat.method.needs.sees else "for any question"
    )
    if chat.in_view:
        chosen = f"for {chat.in_view!r}"
    if chat.session.by_question and chat.method.needs.queries:
        chosen = "anew for every question"
    rows = [
        ("method", f"{name_of(chat.method)}:{spec}"),
        ("rows kept", chosen),
        ("full copy", chat.readings.full_copy),
        ("overflow", chat.options.overflow),
        ("chunks", f"{chat.session.engine.chunk:,} tokens are read at once"),
        ("chat", context.keeper.title),
    ]
    if chat.book.cut:
        rows.append(("cut", str(chat.book.cut)))
    for name in KEYS:
        origin = chat.settings.origins.get(name, "built in")
        rows.append((name, f"{shown(chat.settings.values()[name])}  ({origin})"))
    return rows


def _template(context: Context) -> Sequence[Row]:
    form = context.chat.session.dialogue.form
    kind = "the model's chat template" if form.is_template else "plain Question / Answer form"
    parts = ("lead", "joint", "opening", "header", "between")
    return [("form", kind), *((part, repr(getattr(form, part))) for part in parts)]


def _prompt(context: Context) -> Sequence[Row]:
    session = context.chat.session
    ids = [*session.document, *(i for turn in session.turns for i in turn.ids)]
    text = session.dialogue.tokenizer.hf.decode(ids)
    count = f"{len(ids):,} tokens, {len(text):,} characters"
    if len(text) <= 2 * EXCERPT:
        return [(count,), (text,)]
    return [(count,), (text[:EXCERPT],), ("[…]",), (text[-EXCERPT:],)]


PARTS: dict[str, Callable[[Context], Sequence[Row]]] = {
    "model": _model,
    "template": _template,
    "prompt": _prompt,
    "config": _config,
}
