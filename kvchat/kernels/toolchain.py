"""What Triton needs of a machine before a kernel can run; asked without it, and without torch."""

import os
import shutil
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# Every kernel was compiled with these, for compute capability 8.0, 8.6, 8.9 and 9.0.
TRITON = ("3.6", "3.7", "3.9")
NEEDS_COMPILER = "Triton builds the part that starts kernels with a C compiler, and there is none"


def compiler() -> str:
    """The C compiler that Triton calls, as it looks for it; empty: none."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or ""


def headers() -> str:
    """The folder in which `Python.h` is; empty: nowhere."""
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    folder = sysconfig.get_paths(scheme=scheme)["include"]
    return folder if Path(folder, "Python.h").is_file() else ""


def lacking() -> str:
    """Why no kernel of Triton can be started here, in one line; empty: they can, as far as is
    known before one has been."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if not compiler():
        return f"{NEEDS_COMPILER} (apt install gcc, or CC=PATH)"
    if not headers():
        return "Triton compiles against Python.h, which is missing (apt install python3-dev)"
    return ""


def checked() -> tuple[bool, str]:
    """Whether kernels were compiled with the Triton that is installed, and its version in words."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        return False, "missing"
    known = ".".join(found.split(".")[:2]) in TRITON
    return known, f"{found}; kernels were compiled with {', '.join(TRITON)}"
