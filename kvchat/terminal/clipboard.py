"""The clipboard: a program of the desktop, or the terminal itself where there is none (OSC 52)."""

import base64
import os
import shutil
import subprocess
import sys

from kvchat.errors import KvchatError

# Programs that take text on stdin, and the variable that says that their desktop is there.
PROGRAMS = (
    ("wl-copy", (), "WAYLAND_DISPLAY"),
    ("xclip", ("-selection", "clipboard"), "DISPLAY"),
    ("xsel", ("--clipboard", "--input"), "DISPLAY"),
)
MOST = 74_994  # bytes: what terminals take in one sequence
SECONDS = 5


def copy(text: str) -> str:
    """Put a text on the clipboard; says where it went. Raises KvchatError("usage")."""
    data = text.encode("utf-8", "replace")
    if command := desktop():
        try:
            # their output is not waited for: they stay, to serve what was copied
            subprocess.run(
                command,
                input=data,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
                check=True,
            )
            return command[0]
        except (OSError, subprocess.SubprocessError):
            pass  # a display that is not there any more: the terminal may do it
    if len(data) > MOST:
        raise KvchatError(
            "usage", f"{len(data):,} bytes are too many for a terminal's clipboard", "/export FILE"
        )
    if not sys.stderr.isatty():
        raise KvchatError("usage", "there is no clipboard without a terminal", "/export FILE")
    sys.stderr.write(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
    sys.stderr.flush()
    return "the terminal (OSC 52), if it allows that"


def desktop() -> list[str] | None:
    """The program for this desktop's clipboard; None over ssh, where it would be the wrong one."""
    if "SSH_CONNECTION" in os.environ:
        return None
    if sys.platform == "darwin":
        return ["pbcopy"]
    for name, arguments, variable in PROGRAMS:
        if os.environ.get(variable) and shutil.which(name):
            return [name, *arguments]
    return None
