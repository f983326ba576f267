"""The model that is asked for, or chosen; one that must be downloaded is offered, never taken."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kvchat.documents import Document
from kvchat.engine.gguf import is_gguf
from kvchat.errors import KvchatError
from kvchat.hub import choose
from kvchat.hub.find import Model, demo_model, find_model
from kvchat.hub.places import Missing
from kvchat.machine.fit import room
from kvchat.settings.options import Options
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import WORDS, clean, size
from kvchat.terminal.tty import somebody

KEYS = "123456789"


def model_of(options: Options, screen: Screen) -> Model:
    """The model of `--model`; one of Hugging Face that is missing is offered at a terminal.

    Raises KvchatError("model").
    """
    try:
        return find_model(options.model, options.aliases, options.revision)
    except Missing as missing:
        if not askable(options, screen):
            raise
        # the library is not needed where nothing is missing
        from kvchat.hub import pull

        if not pull.download(missing.repository, options.revision, screen, options.yes):
            raise
        return find_model(options.model, options.aliases, options.revision)


def chosen_model(
    options: Options, documents: Sequence[Document], screen: Screen
) -> tuple[Model, Options]:
    """The model where none is given or configured: see `choose`.

    The options may have other `weights`, so that it fits. Raises KvchatError("model").
    """
    if choose.of_the_sample(documents):
        screen.warn("no model given: the bundled demo model, which reads its samples only")
        return demo_model(), options
    here = room(options.device, options.mem_limit)
    tokens = choose.tokens_of(documents)
    with screen.busy("looking for local models"):
        found, why = choose.best(options.aliases, here, tokens)
    if found is not None:
        screen.warn(f"no model given: {found.name}, {why} (-m NAME picks another: kvchat models)")
        if found.fits == "int4" and options.weights == "auto":
            origins = {**options.origins, "weights": "chosen with the model"}
            options = replace(options, weights="int4", origins=origins)
        return Model(found.name, found.path), options
    return downloaded(options, screen, why, tokens), options


def downloaded(options: Options, screen: Screen, why: str, tokens: int | None) -> Model:
    """A recommended model, after a question. Raises KvchatError("model") where the answer is no, or
    nobody is there to ask."""
    here = room(options.device, options.mem_limit)
    rows = choose.offered(here, tokens)
    row = choose.recommended(rows, here, tokens)
    if row is None or not askable(options, screen):
        raise choose.nothing(why, row)
    able = [each for each in rows if each.fits][-len(KEYS) :]
    screen.tell(f"no model given or configured, and {why}. Models that can be downloaded:")
    lines = [("", "name", "download", "needs", "window", "licence")]
    for number, each in enumerate(able, 1):
        entry = each.entry
        window = f"{entry.window:,}"
        mark = f"{number}{'*' if each is row else ''}"
        lines.append(
            (mark, entry.name, size(entry.bytes), size(each.needed), window, entry.licence)
        )
    screen.columns(lines)
    left_out = sum(not each.fits for each in rows)
    rest = f"; {left_out} more would not fit" if left_out else ""
    screen.tell(f"{here}{rest}. * is recommended here.")
    if not options.yes:
        # prompt-toolkit is not needed where nothing is asked
        from kvchat.terminal.key_prompt import choose as key_of

        count = len(able)
        other = f", [1-{count}] another" if count > 1 else ""
        question = f"download {row.entry.name}, {size(row.entry.bytes)}? [Enter] yes{other}, [n]o"
        key = key_of(question, f"yn{KEYS[:count]}", "y", "n")
        if key == "n":
            raise choose.nothing(why, row)
        row = able[int(key) - 1] if key.isdigit() else row
    from kvchat.hub import pull

    pull.download(row.entry.source, None, screen, yes=True)
    return find_model(row.entry.source)


def askable(options: Options, screen: Screen) -> bool:
    """Whether there is a person to ask, who wants to be asked."""
    offline = options.offline or WORDS.get(os.environ.get("HF_HUB_OFFLINE", "").lower(), False)
    return not (screen.quiet or options.machine_readable or offline) and somebody()


def with_text(model: Model, options: Options) -> Model:
    """The model with `--tokenizer` and `--chat-template`. Raises KvchatError("model")."""
    path, template = None, options.chat_template
    if options.tokenizer:
        path = Path(options.tokenizer).expanduser().absolute()
        if not path.is_dir() and not is_gguf(path):
            raise KvchatError(
                "model",
                f"--tokenizer {clean(options.tokenizer)} is neither a folder nor a GGUF file",
            )
    if template:
        template = str(Path(template).expanduser().absolute())
    return replace(model, tokenizer=path, template=template)
