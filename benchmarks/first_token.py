"""The way of the data: which functions of kvchat run between `main()` and the first token.

    python benchmarks/first_token.py [ARGUMENTS OF kvchat]

Counts functions that are called and the files they stand in (not the bodies of modules and classes,
not comprehensions), and prints them with `--list`.
"""

import inspect
import os
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
USUAL = ["-m", "demo", "samples/valley.txt", "-p", "What is the boat of Henrik Ingram?"]
USUAL += ["--method", "adakv", "-q", "-n", "1"]


def walk(arguments: list[str]) -> set[CodeType]:
    """Code of the functions that `kvchat ARGUMENTS` calls."""
    called: set[CodeType] = set()
    package = str(ROOT / "kvchat")

    def see(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(package):
            called.add(code)

    from kvchat.cli.main import run

    sys.setprofile(see)
    try:
        run(arguments)
    finally:
        sys.setprofile(None)
    functions = {code for code in called if code.co_flags & inspect.CO_OPTIMIZED}
    return {code for code in functions if not code.co_name.startswith("<")}


def main() -> None:
    """Count, and say."""
    os.chdir(ROOT)
    os.environ["KVCHAT_PROMPT_CACHE"] = "off"
    listed = "--list" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--list"]
    called = walk(arguments or USUAL)
    files = Counter(str(Path(code.co_filename).relative_to(ROOT)) for code in called)
    if listed:
        for name in sorted(files):
            names = sorted(c.co_name for c in called if c.co_filename.endswith(name))
            print(f"{name:<44} {' '.join(names)}")
    print(f"{len(called)} functions in {len(files)} files")


if __name__ == "__main__":
    main()
