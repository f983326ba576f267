"""The one place where wording is held: what the help and a first screen say, as a file to look at.

After a change on purpose: `UPDATE_WORDING=1 python -m pytest tests/cli/test_wording.py`.
"""

import os
import re
from pathlib import Path

from kvchat.repl import commands
from tests.support.forked import kvchat
from tests.support.program import SAMPLE
from tests.support.scene import Scene

HELD = Path(__file__).with_name("wording.txt")


def said(folder) -> str:
    """Help of program and chat, and the lines around an answer; figures that vary are `N`."""
    wide = {"COLUMNS": "100", "KVCHAT_PROMPT_CACHE": "off", "LANG": "C.UTF-8"}
    answer = kvchat("-v", "-m", "demo", str(SAMPLE), "-p", "Who?", "-n", "3", **wide)
    parts = {
        "kvchat --help": kvchat("--help", **wide).stdout.decode(),
        "kvchat -v -m demo valley.txt -p Who? -n 3": answer.stderr.decode(),
        "kvchat plan -m demo --tokens 8k": kvchat("plan", "-m", "demo", "--tokens", "8k", **wide)
        .stdout.decode(),
        "/help": Scene(folder, width=100).run("/help"),
    }  # fmt: skip
    assert len(commands.COMMANDS) < 27
    text = "\n".join(f"$ {name}\n{part.strip()}\n" for name, part in parts.items())
    text = re.sub(r"\d[\d,.]*", "N", text)
    lines = (re.sub(r"(?<=\S) {2,}", "  ", line.rstrip()) for line in text.splitlines())
    return "\n".join(line for line in lines if "kvchat: prefill" not in line) + "\n"


def test_what_is_said_is_what_was_last_looked_at(chat_folder):
    found = said(chat_folder("byte-level", "chatml"))
    if os.environ.get("UPDATE_WORDING"):
        HELD.write_text(found, encoding="utf-8")
    assert found == HELD.read_text(encoding="utf-8")
