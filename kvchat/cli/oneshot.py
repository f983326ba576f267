"""`-p`: answers on stdout, one prefill for all questions, then the end."""

from kvchat.chat.chat import Chat
from kvchat.chat.chatlog_writer import ChatLogWriter
from kvchat.chat.form import form_of
from kvchat.chat.prepare import Prepared
from kvchat.chat.resume import open_or_resume
from kvchat.cli.json_answer import report
from kvchat.cli.json_events import emit
from kvchat.errors import KvchatError
from kvchat.repl.turn import ask, say_sources
from kvchat.terminal.interrupt import Interrupt
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import counted, unicode


def run(prepared: Prepared, screen: Screen) -> int:
    """Ask every prompt about the document, independently. Returns the exit code.

    In a chat that is gone on with (`--continue`, `--resume`, `--session`) the prompts are turns of
    it. Otherwise the last one, unless JSON is wanted, is a new chat that can be gone on with.
    """
    chat, writer = open_or_resume(prepared, screen, interactive=False)
    with chat.cache:
        return answered(chat, writer, screen)


def answered(chat: Chat, writer: ChatLogWriter, screen: Screen) -> int:
    """Ask every prompt of the options. Returns the exit code."""
    options = chat.options
    if options.last and not screen.steps and not options.quiet:  # else it has been said
        files = ", ".join(file.title for file in chat.book.files) or "no document"
        screen.warn(f"going on with {writer.title} (about {files})")
    talking = options.last or options.resume or options.session
    unsaved, form = 0, form_of(chat)
    for number, prompt in enumerate(options.prompts):
        if not talking:
            chat.session.clear()
        on_delta = on_thought = None
        if options.machine_readable:
            on_delta = on_thought = lambda text: None
        if options.jsonl:
            on_delta, on_thought = token, thought
        with Interrupt() as calm:
            question = unicode(prompt)
            shape = form() if form else None
            done = ask(chat, screen, question, None, on_delta, on_thought, shape)
            writer.turn(chat, 0 if talking else min(number, 1))
            unsaved += bool(talking and writer.problem)
        if options.machine_readable:
            found = report(chat, question, done, screen.warnings)
            emit({"event": "done"} | found if options.jsonl else found)
        else:
            say_sources(chat, screen)
        calm.leave_if_told()
        if done.finish_reason == "cancelled":
            raise KeyboardInterrupt
        if done.finish_reason in ("length", "window") and not options.machine_readable:
            limit = f"the window of {chat.session.limit:,} tokens is full"
            if done.finish_reason == "length":
                limit = f"token limit {chat.options.longest:,} (--max-tokens)"
            what = "thought" if done.reasoning_tokens and not done.answer else "answer"
            screen.warn(f"the {what} was cut: {limit}")
        elif done.finish_reason == "repetition" and not options.machine_readable:
            screen.warn(
                "the answer repeated itself and was ended "
                "(--repeat-penalty 1.1, or --temp 0.7, may help)"
            )
        elif done.reasoning_tokens and not done.answer and not options.machine_readable:
            screen.warn("the model ended in its thought, without an answer (--think off)")
    writer.close()
    if unsaved:
        several = counted(unsaved, "answer")
        raise KvchatError("session", f"{several} not saved: {writer.problem}", "free space")
    return 0


def token(text: str) -> None:
    """A piece of the answer for `--jsonl`."""
    emit({"event": "token", "text": text})


def thought(text: str) -> None:
    """A piece of what the model thinks before it answers."""
    emit({"event": "thought", "text": text})
