"""The command line of `kvchat bench`."""

from typing import Any

from kvchat.bench.settings import Settings
from kvchat.cli.flags import takes
from kvchat.settings.option import read_all


@takes(Settings)
def bench(**given: Any) -> int:
    """Speed and memory of this machine, by method; options as in llama-bench.

    ppN prefills N tokens, tgN @ dM decodes N after M others; methods: full, adakv and kvzip. -p -n
    -d -t, methods and budgets are lists: a,b or the flag again, numbers also 512-8192*2 or
    1k-4k+1k. Exit code 6: memory was not enough for a test, and the others were run.
    """
    from kvchat.bench import run

    asked = read_all(Settings, given)
    return run.list_devices() if asked.list_devices else run.run(asked.resolved())
