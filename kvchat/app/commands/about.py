"""Commands that explain: keys, effective settings, the prompt as the model sees it."""

from collections.abc import Callable

from kvchat.app.commands.context import Context, Quit
from kvchat.app.settings import KEYS, shown
from kvchat.app.text import size
from kvchat.engine.methods.spec import method_options, name_of
from kvchat.errors import KvchatError

KEY_BINDINGS = (
    ("Enter", "send"),
    ("Alt-Enter, Esc Enter", "new line"),
    ('"""', "begins and ends a text of several lines"),
    ("Tab", "complete commands, keys, values, paths and chats"),
    ("Up, Down; Ctrl-R; →", "history; search in it; take the suggestion"),
    ("Ctrl-C", "stop an answer or a reading; at the prompt twice: quit"),
    ("Ctrl-D", "quit, on an empty line"),
    ("Ctrl-X Ctrl-E", "edit the line in $EDITOR"),
    ("Ctrl-L, Ctrl-Z", "clear the screen, suspend"),
)
EXCERPT = 400  # characters of the prompt shown from either end


def keys(context: Context, argument: str) -> None:
    """what the keys do"""
    width = max(len(key) for key, _ in KEY_BINDINGS)
    for key, what in KEY_BINDINGS:
        context.screen.tell(f"  {key:<{width}}  {what}")


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
    for part in ("model", "config") if wanted == ["all"] else wanted:
        for line in PARTS[part](context):
            context.screen.tell(f"  {line}")


def _model(context: Context) -> list[str]:
    chat = context.chat
    engine, config = chat.session.engine, chat.session.engine.config
    return [
        f"model      {chat.model.name} ({config.family}), {config.parameters / 1e6:,.1f} M "
        f"parameters, {size(engine.weights_bytes)}",
        f"folder     {chat.model.folder}",
        f"computes   {str(engine.dtype).removeprefix('torch.')} on {engine.device}, attention: "
        f"{type(engine.backend).__name__}",
        f"layers     {config.num_layers}, {config.num_heads} query heads over "
        f"{config.num_kv_heads} KV heads of {config.head_dim}",
        f"window     {chat.session.limit:,} tokens (the model's: {config.context_limit:,})",
    ]


def _config(context: Context) -> list[str]:
    chat = context.chat
    options, origins = chat.options, chat.options.origins
    values = method_options(chat.method).items()
    spec = ", ".join([f"budget={chat.method.budget}", *(f"{k}={v}" for k, v in values)])
    chosen = f"for {chat.in_view!r}" if chat.in_view else "by the end of the document"
    lines = [
        f"method     {name_of(chat.method)}:{spec}",
        f"rows kept  {chosen} (/reread chooses by a question)",
        f"overflow   {options.overflow}, reading in chunks of {chat.session.engine.chunk:,}",
        f"chat       {context.keeper.title}",
    ]
    if chat.book.cut:
        lines.append(f"cut        {chat.book.cut}")
    for name in KEYS:
        origin = chat.settings.origins.get(name, "built in")
        lines.append(f"{name:<14} {shown(chat.settings.values()[name]):<8} {origin}")
    rest = {name: origin for name, origin in origins.items() if name not in KEYS}
    lines += [f"{name:<14} from {origin}" for name, origin in sorted(rest.items())]
    return lines


def _template(context: Context) -> list[str]:
    form = context.chat.session.dialogue.form
    kind = "the model's chat template" if form.is_template else "plain Question / Answer form"
    parts = ("lead", "joint", "opening", "header", "between")
    return [kind, *(f"{part:<8} {getattr(form, part)!r}" for part in parts)]


def _prompt(context: Context) -> list[str]:
    session = context.chat.session
    ids = [*session.document, *(i for turn in session.turns for i in turn.ids)]
    text = session.dialogue.tokenizer.hf.decode(ids)
    count = f"{len(ids):,} tokens, {len(text):,} characters"
    if len(text) <= 2 * EXCERPT:
        return [count, *text.splitlines()]
    return [count, *text[:EXCERPT].splitlines(), "[…]", *text[-EXCERPT:].splitlines()]


PARTS: dict[str, Callable[[Context], list[str]]] = {
    "model": _model,
    "template": _template,
    "prompt": _prompt,
    "config": _config,
}
