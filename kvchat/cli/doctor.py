"""`kvchat doctor`: what is here and what is missing. Exit code 7 if kvchat cannot run here."""

import locale
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rich.text import Text

from kvchat import __version__
from kvchat.chat import chatlog as saved
from kvchat.engine.attention import BACKENDS
from kvchat.engine.budget import Budget
from kvchat.engine.kernels import kernels_on
from kvchat.engine.methods import AUTO, METHODS
from kvchat.engine.methods.specs import parse_spec
from kvchat.engine.model import MODELS
from kvchat.engine.weights.bits import WEIGHTS
from kvchat.errors import EXIT_CODES, KvchatError
from kvchat.hub import ollama
from kvchat.hub.choose import best, offered, recommended
from kvchat.hub.find import find_model
from kvchat.hub.places import MODEL_FOLDERS, at_hand, hub_folder, llama_cpp, lm_studio
from kvchat.kernels import toolchain
from kvchat.machine.fit import room
from kvchat.settings import config
from kvchat.terminal.colours import ERROR, NOTICE, console
from kvchat.terminal.text import clean, counted, size

NEEDED = ("torch", "transformers", "safetensors", "rich", "prompt_toolkit", "typer")
OPTIONAL = {
    "flash_attn": "faster prefill on CUDA: pip install 'kvchat[flash]'",
    "pypdfium2": "PDF files: pip install 'kvchat[pdf]'",
    "pypdf": "PDF files that pypdfium2 cannot read",
    "rapidocr": "scanned pages and pictures: pip install 'kvchat[ocr]'",
    "matplotlib": "pictures of bench and eval: pip install 'kvchat[plot]'",
}
Line = tuple[str, str, str]  # mark, name, what was found


def doctor() -> int:
    """Check installation, devices and configuration."""
    out = console(soft_wrap=True)
    lines = [line for check in CHECKS for line in check()]
    colors = {"ok": "", "no": NOTICE, "BAD": f"bold {ERROR}"}
    for mark, name, found in lines:
        out.print(Text(f"{mark:<4}", colors[mark]), Text(clean(f"{name:<18} {found}")), sep="")
    out.print(recommendation())
    bad = any(mark == "BAD" for mark, _, _ in lines)
    return EXIT_CODES["device"] if bad else 0


def recommendation() -> str:
    """What to start with on this machine."""
    try:
        here = room("auto")
        found, _ = best(config.settle({}, config.load()).aliases, here, None)
        download = recommended(offered(here, None), here, None)
    except KvchatError as error:
        return f"recommended: {clean(error.tries[0] if error.tries else error.message)}"
    if found is not None:
        weights = " --weights int4" if found.fits == "int4" else ""
        return f"recommended: kvchat -m {clean(found.name)}{weights} FILE  (method {AUTO}, {here})"
    if download is not None:
        return f"recommended: kvchat models pull {download.entry.name}  ({here})"
    return f"recommended: kvchat FILE, with the bundled model  ({here})"


def _versions() -> list[Line]:
    lines = [("ok", "kvchat", f"{__version__} · Python {platform.python_version()}")]
    for name in NEEDED:
        try:
            lines.append(("ok", name, version(name.replace("_", "-"))))
        except PackageNotFoundError:
            lines.append(("BAD", name, "is missing; install kvchat again"))
    return lines


def _optional() -> list[Line]:
    return [
        ("ok", name, "found") if find_spec(name) else ("no", name, f"missing ({what})")
        for name, what in OPTIONAL.items()
    ]


def _device() -> list[Line]:
    try:
        import torch

        from kvchat.machine import resources as machine
    except Exception as error:  # a broken installation fails in its own ways
        return [("BAD", "torch", f"does not load: {error}")]
    cpu = torch.device("cpu")
    there = torch.distributed.is_available()
    group = "gloo on a CPU, nccl on cards (--devices N, torchrun)" if there else "torch has none"
    several: Line = ("ok" if there else "no", "several devices", group)
    memory = f"{size(machine.free(cpu))} of {size(machine.total(cpu))} RAM free"
    lines = [("ok", "cpu", f"{machine.processor()}, {torch.get_num_threads()} threads, {memory}")]
    if not torch.cuda.is_available():
        why = "torch is a CPU build" if torch.version.cuda is None else "no device or driver"
        return [*lines, ("no", "cuda", f"{why}; the CPU is used"), several]
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        free, total = machine.free(device), machine.total(device)
        lines.append(("ok", machine.device_name(device), f"{size(free)} of {size(total)} free"))
    return [*lines, several]


def _kernels() -> list[Line]:
    """What the kernels of a card need, where there is one or Triton is installed."""
    if find_spec("triton") is None:
        return [("no", "triton", "missing (CUDA kernels; a card runs plain torch without, slowly)")]
    if why := toolchain.lacking():
        return [("no", "C compiler", f"{why}; a card runs plain torch without, slowly")]
    known, version = toolchain.checked()
    found = f"{toolchain.compiler()}, Python.h in {toolchain.headers()}"
    return [("ok", "C compiler", found), ("ok" if known else "no", "triton", version)]


def _weights() -> list[Line]:
    try:
        from kvchat.engine.weights.lowbit import unpacking
    except Exception:
        return []  # torch does not load, which is said above
    if unpacking() is None:
        why = "this processor's packing of 4 bits is not known, documents are read slowly with int4"
        return [("no", "weights", f"{', '.join(WEIGHTS)}; {why}")]
    return [("ok", "weights", ", ".join(WEIGHTS))]


def _tables() -> list[Line]:
    return [
        ("ok", "families", ", ".join(MODELS)),
        ("ok", "methods", ", ".join(METHODS)),
        ("ok", "attention", ", ".join(BACKENDS)),
        ("ok", "kernels", f"{kernels_on('cpu')} on a CPU, {kernels_on('cuda')} on a card"),
    ]


def _models() -> list[Line]:
    """The folders in which models are looked for, as far as they exist."""
    counts = Counter(found.place for found in at_hand() if not found.why)
    places = {
        "models/": MODEL_FOLDERS,
        "Hugging Face cache": [hub_folder()],
        "LM Studio": lm_studio(),
        "llama.cpp": llama_cpp(),
        "ollama": ollama.folders(),
    }
    lines: list[Line] = []
    for place, folders in places.items():
        there = [str(folder.resolve()) for folder in folders if _is_there(folder)]
        told = f"{counted(counts[place], 'model')} in {', '.join(dict.fromkeys(there))}"
        lines.append(("ok", place, told) if there else ("no", place, "no such folder"))
    return lines


def _is_there(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError:  # inside a folder of another user
        return False


def _terminal() -> list[Line]:
    encoding = sys.stdout.encoding or "?"
    utf = "utf" in encoding.lower()
    marks = f"TERM={os.environ.get('TERM', '')}" + (" NO_COLOR" if "NO_COLOR" in os.environ else "")
    return [
        ("ok" if utf else "no", "encoding", f"{encoding}, locale {locale.getpreferredencoding()}"),
        ("ok" if sys.stdout.isatty() else "no", "terminal", f"{marks}, tty {sys.stdout.isatty()}"),
    ]


def _places() -> list[Line]:
    try:
        found = config.load()
        there = str(found.path) if found.path.exists() else f"none ({found.path})"
        lines: list[Line] = [("ok", "config", there)]
        options = config.settle({}, found)
        budget = Budget.parse(options.budget) if options.budget else None
        if options.method != AUTO:
            parse_spec(options.method, budget, options.method_pairs)
        find_model(options.model, options.aliases)
    except KvchatError as error:
        lines = [("BAD", "config", error.message)]
    chats = len(list(saved.folder().glob("*.jsonl")))
    return [*lines, ("ok", "saved chats", f"{chats} in {saved.folder()}")]


CHECKS: tuple[Callable[[], list[Line]], ...] = (
    _versions,
    _optional,
    _device,
    _kernels,
    _weights,
    _tables,
    _models,
    _terminal,
    _places,
)
