"""One run from end to end in tmux, as a person would: the demo model and the sample."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from tests.support.program import ROOT, SAMPLE
from tests.support.terminal import DONE, WAIT

TMUX = shutil.which("tmux")


@pytest.mark.skipif(TMUX is None, reason="tmux is not installed")
def test_a_chat_in_tmux(tmp_path):
    server = ["tmux", "-L", f"kvchat-{os.getpid()}", "-f", os.devnull]
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "TMUX")}
    environment |= {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "LANG": "C.UTF-8"}
    environment |= {"XDG_CONFIG_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": "."}

    def tmux(*arguments):
        done = subprocess.run(
            [*server, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT
        )
        return done.stdout

    def wait(text):
        end = time.monotonic() + WAIT
        while not re.search(text, drawn := tmux("capture-pane", "-p", "-S", "-200")):
            assert time.monotonic() < end, f"no {text!r}; drawn:\n{drawn}"
            time.sleep(0.1)
        return drawn

    program = f"{sys.executable} -m kvchat {SAMPLE}; echo left with $?; cat"
    try:
        tmux("new-session", "-d", "-x", "80", "-y", "24", program)
        wait("Ask about valley.txt")
        wait("ctx ")
        tmux("send-keys", "What is the boat of Henrik Ingram?", "Enter")
        drawn = wait(DONE)
        assert "The boat of Henrik Ingram is" in drawn and len(re.findall(DONE, drawn)) == 1
        tmux("send-keys", "/undo", "Enter")
        wait("removed 1 turn")
        tmux("send-keys", "C-d")
        wait("left with 0")
    finally:
        tmux("kill-server")
