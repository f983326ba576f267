"""How a process ends: real signals, sent to a real process."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvchat.process import interruptible

WAITS = """
import sys
from kvchat.process import prepare
from kvchat.terminal.interrupt import Interrupt
prepare()
with Interrupt() as interrupt, interrupt.idle():
    print("ready", flush=True)
    sys.stdin.read()
print("alive")
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("ignored", [True, False])
def test_a_signal_that_the_parent_ignores_does_not_end_us(number, ignored):
    """As `nohup kvchat …` asks for, and `trap '' TERM`."""
    before = signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        child = subprocess.Popen([sys.executable, "-c", WAITS], **pipes)
    finally:
        signal.signal(number, before)
    with child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(number)
        out, _ = child.communicate(timeout=60)
    assert (out, child.returncode) == ((b"alive\n", 0) if ignored else (b"", 128 + number))


def test_whoever_listens_for_ctrl_c_goes_on_doing_so():
    """A program that has kvchat as a library, also in a thread, where nobody may listen anew."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(interruptible).result()
        interruptible()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
