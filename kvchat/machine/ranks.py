"""Starts the processes that hold a model together on this machine, or joins those that torchrun has
started: the first runs the program, the others follow it (`engine/ranks.py`)."""

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from shutil import rmtree
from typing import Any

from kvchat.errors import KvchatError

RANK, COUNT, LOCAL = "RANK", "WORLD_SIZE", "LOCAL_RANK"  # as torchrun sets them
STORE = "KVCHAT_RANKS"  # where processes of ours find each other
FOREVER = timedelta(days=3650)  # a person may think that long before the next question
CONNECT = 120.0  # seconds for others to begin
MOMENT = 2.0  # seconds in which an ended process can be asked why
THREADS = "OMP_NUM_THREADS"
_begun: list[tuple[Any, Any, int]] = []  # the lead, the others, and whose they are


def placed() -> tuple[int, int]:
    """Which rank this process is, and of how many, as torchrun or we have started it."""
    try:
        rank, count = int(os.environ.get(RANK, "0")), int(os.environ.get(COUNT, "1"))
    except ValueError:
        return 0, 1
    return (rank, count) if count > 1 else (0, 1)


def follows() -> bool:
    """Whether this process does what the first rank says."""
    return placed()[0] > 0


def wanted(devices: int | None) -> int:
    """Over how many ranks the model goes. Raises KvchatError("usage")."""
    _, count = placed()
    if count > 1 and devices not in (None, count):
        raise KvchatError(
            "usage",
            f"--devices {devices}, and {count} processes were started",
            f"torchrun --nproc-per-node {devices}",
            f"--devices {count}",
        )
    return count if count > 1 else devices or 1


def refuse(devices: int | None, what: str) -> None:
    """Raise KvchatError("usage") where a model over several devices is not provided for."""
    if (count := wanted(devices)) > 1:
        raise KvchatError(
            "usage", f"{what} works on one device; {count} are asked for", "--devices 1"
        )


def begin(devices: int | None, program: Sequence[str] = ("-m", "kvchat")) -> Any:
    """The `Lead` of so many ranks, the others being started; None for one device."""
    if (count := wanted(devices)) == 1:
        return None
    if _begun:
        raise KvchatError(
            "usage",
            f"one model at a time goes over {count} devices",
            "a new kvchat with the other model",
        )
    from kvchat.engine.peers import Group
    from kvchat.engine.ranks import Lead

    started = placed()[1] > 1
    others = None if started else Others(count, program)
    connect = _join if others is None else others.connect
    group = Group(0, count, connect, (lambda: "") if others is None else others.why)
    lead = Lead(group)
    _begun.append((lead, others, os.getpid()))
    _share_cores(count)
    return lead


@atexit.register
def finish() -> None:
    """Let the others go, and wait for their end."""
    for lead, others, owner in _begun:
        if os.getpid() != owner:  # a fork of it
            continue
        with suppress(Exception):
            lead.end()
        if others is not None:
            others.close(at_once=lead.lost is not None)
            lead.group.leave()
    _begun.clear()


@contextmanager
def team(devices: int | None, work: Callable[..., Any], *about: Any) -> Iterator[Any]:
    """This process among others that share out what is to be done, each with all of the model: the
    others do `work(*about, peers)`, this one its part in here. Raises KvchatError("usage").
    """
    from kvchat.engine.peers import ALONE

    lead = begin(devices)
    with nullcontext(ALONE) if lead is None else lead.sharing(work, *about) as peers:
        yield peers


class Others:
    """The ranks beside the first one, as processes of ours."""

    def __init__(self, count: int, program: Sequence[str]):
        self.count, self.folder = count, Path(tempfile.mkdtemp(prefix="kvchat-ranks-"))
        self.program = program
        self.processes = [self._started(rank) for rank in range(1, count)]

    def _started(self, rank: int) -> subprocess.Popen[bytes]:
        about = {RANK: rank, COUNT: self.count, LOCAL: rank, STORE: self.folder / "store"}
        environment = {**os.environ, **{name: str(value) for name, value in about.items()}}
        environment.setdefault(THREADS, str(max(1, (os.cpu_count() or 1) // self.count)))
        with (self.folder / f"{rank}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *self.program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )

    def connect(self) -> None:
        """Wait until all are there. Raises KvchatError("device") if one ends before."""
        import torch.distributed as distributed

        store, end = _store(self.folder / "store", self.count), time.monotonic() + CONNECT
        names = [f"here{rank}" for rank in range(1, self.count)]
        while not store.check(names):
            if any(each.poll() is not None for each in self.processes) or time.monotonic() > end:
                raise KvchatError(
                    "device",
                    f"not all of {self.count} processes could begin: {self.why()}",
                    "--devices 1",
                    ranks=self.count,
                )
            time.sleep(0.02)
        with _quiet():
            distributed.init_process_group(
                _backend(), store=store, rank=0, world_size=self.count, timeout=FOREVER
            )

    def why(self) -> str:
        """What became of the first that has ended."""
        end = time.monotonic() + MOMENT
        while time.monotonic() < end:
            for rank, each in enumerate(self.processes, 1):
                if (code := each.poll()) is not None:
                    said = (self.folder / f"{rank}.log").read_text("utf-8", "replace").split("\n")
                    last = next((line for line in reversed(said) if line.strip()), "")
                    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                    return f"rank {rank} ended with {how}{': ' * bool(last)}{last[:200]}"
            time.sleep(0.02)
        return "no answer"

    def close(self, at_once: bool) -> None:
        """Wait for all to end, not for long."""
        for each in self.processes:
            try:
                each.wait(0 if at_once else MOMENT)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()
        rmtree(self.folder, ignore_errors=True)


def follower(load: Callable[..., Any] | None = None) -> int:
    """A rank beside the first one, from its beginning to its end. Returns the exit code.

    `load` loads an engine where it is not `load_engine`.
    """
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends it to all; the first decides
        signal.signal(number, signal.SIG_IGN)
    rank, count = placed()
    parent = os.getppid()
    if STORE in os.environ:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    from kvchat.engine.events import drain
    from kvchat.engine.loading import load_engine
    from kvchat.engine.peers import Group
    from kvchat.engine.ranks import follow

    group = Group(rank, count, _join)
    _share_cores(count)
    try:
        loading: Callable[..., Any] = load or load_engine
        follow(group, lambda *how: drain(loading(*how, peers=group)))
    except KvchatError as error:
        if "ranks" in error.details and STORE in os.environ:  # the first one says so
            _clear(parent)
            return 0
        print(f"rank {rank}: {error.message}", file=sys.stderr)
        return error.exit_code
    except BaseException as error:
        print(f"rank {rank}: {type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        return 1
    return 0


def _watch(parent: int) -> None:
    """End when the process that has started us has: it may wait for nobody."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _clear(parent)
    os._exit(0)


def _clear(parent: int) -> None:
    """Remove the folder of ours, if the process that made it has left it behind."""
    time.sleep(0.1)  # it may be about to end
    if STORE in os.environ and os.getppid() != parent:
        rmtree(Path(os.environ[STORE]).parent, ignore_errors=True)


def _join() -> None:
    """Meet the others as the environment says."""
    import torch.distributed as distributed

    rank, count = placed()
    with _quiet():
        if STORE not in os.environ:
            distributed.init_process_group(_backend(), timeout=FOREVER)
            return
        store = _store(Path(os.environ[STORE]), count)
        store.set(f"here{rank}", "1")
        distributed.init_process_group(
            _backend(), store=store, rank=rank, world_size=count, timeout=FOREVER
        )


def _store(path: Path, count: int) -> Any:
    import torch.distributed as distributed

    for name in ("lo", "lo0"):  # of one machine: no look-up of its name
        if Path(f"/sys/class/net/{name}").exists() or sys.platform == "darwin":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else name)
    store = distributed.FileStore(  # type: ignore[attr-defined]
        str(path), count
    )
    store.set_timeout(timedelta(seconds=CONNECT))
    return store


def _backend() -> str:
    import torch

    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _share_cores(count: int) -> None:
    """Each rank computes with its share of the cores."""
    import torch

    if THREADS not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))


@contextmanager
def _quiet() -> Iterator[None]:
    """Libraries that greet each other on standard output do so elsewhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)
        os.close(nowhere)
