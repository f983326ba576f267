"""The guide's table of options, made from their declarations.

`python -m tests.support.options_table` writes it anew; `tests/cli/test_documentation.py` compares.
"""

from collections.abc import Iterator

from kvchat.settings.kinds import SWITCH
from kvchat.settings.options import OPTIONS, Option
from tests.support.program import ROOT

GUIDE = ROOT / "docs" / "guide.md"
BEGIN, END = (
    "<!-- options: python -m tests.support.options_table -->\n",
    "<!-- end of options -->\n",
)


def lines() -> Iterator[str]:
    """The table in Markdown: a row per option, a panel of `--help` above its options."""
    yield "| option | environment, `config.toml` | what it does |"
    yield "|---|---|---|"
    panel = ""
    for option in OPTIONS.values():
        if option.panel != panel:
            panel = option.panel
            yield f"| **{panel}** | | |"
        yield f"| {_flags(option)} | {_elsewhere(option)} | {_help(option)} |"


def _flags(option: Option) -> str:
    *short, long = option.flags
    metavar = "" if option.kind is SWITCH else f" {option.kind.metavar}"
    return ", ".join(f"`{flag}`" for flag in (*short, long + metavar)).replace("|", "\\|")


def _elsewhere(option: Option) -> str:
    if not option.table:
        return "–"
    return f"`{option.variable}`, `[{option.table}] {option.name}`"


def _help(option: Option) -> str:
    choices = () if option.kind is SWITCH else option.kind.choices
    return option.help.replace("|", "\\|") + (f" ({', '.join(choices)})" if choices else "")


def table() -> str:
    """All of it, with a line end."""
    return "\n".join(lines()) + "\n"


def parts() -> tuple[str, str, str]:
    """The guide before its table, the table, and what follows."""
    before, rest = GUIDE.read_text(encoding="utf-8").split(BEGIN)
    inside, after = rest.split(END)
    return before, inside, after


if __name__ == "__main__":
    first, _, last = parts()
    GUIDE.write_text(f"{first}{BEGIN}{table()}{END}{last}", encoding="utf-8")
