"""The thread that owns the engine: answers are decoded together, and join and leave between tokens.

Whoever waits is let in in the order of arrival, when there is a place in the batch and memory for
question and answer. Questions and documents are read in slices of time beside the decoding.
"""

import logging
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any

import torch

from kvchat.engine.engine import Engine
from kvchat.errors import KvchatError, is_out_of_memory
from kvchat.machine import resources as machine
from kvchat.serve.asker import Asker, Failed
from kvchat.serve.feeding import Feeder
from kvchat.serve.refusals import Refusal
from kvchat.terminal.text import size

LOG = logging.getLogger("kvchat.serve")
SLICE = 0.05  # seconds of reading between two decoded tokens
GATHERING = 0.003  # seconds for others to come as well, when there was nothing to do
ROOM = 0.85  # of the free memory that requests may plan with
Job = Generator[Any, None, Any]


@dataclass
class Counts:
    """What the thread has done, for /metrics."""

    steps: int = 0
    tokens: int = 0
    decoding: float = 0.0  # seconds
    cancelled: int = 0
    finished: int = 0
    failed: int = 0
    fed: int = 0  # tokens of questions


@dataclass
class Reading:
    """A document that is read: work in pieces."""

    work: Job
    done: "Future[Any]" = field(default_factory=Future)


class Scheduler(threading.Thread):
    """Owns an engine: nobody else may use it while it runs."""

    def __init__(self, engine: Engine, most: int, queue: int, limit: int | None = None):
        super().__init__(name="kvchat-engine", daemon=True)
        self.engine, self.most, self.queue, self.limit = engine, most, queue, limit
        self.counts = Counts()
        self._threads = torch.get_num_threads()
        self._changed = threading.Condition()
        self._waiting: deque[Asker] = deque()
        self._readings: deque[Reading] = deque()
        self._answering: list[Asker] = []  # whose turn has come: they are fed, or write
        self._feeding = Feeder(engine, self._fed, self._fail)
        self._writing: list[tuple[Asker, int]] = []  # with the token that is to be fed
        self._finishing: deque[tuple[Asker, Job]] = deque()  # whose last token is there
        self._stopping = False

    # From other threads

    def ask(self, asker: Asker) -> None:
        """Let an asker wait for its turn. Raises Refusal if too many do, or if it never fits."""
        with self._changed:
            if self._stopping:
                raise Refusal(503, "the server is stopping", after=5)
            if len(self._waiting) + self.busy >= self.queue + self.most:
                raise Refusal(
                    429,
                    f"{self.busy} answers are being written and {len(self._waiting)} requests wait "
                    f"(at most {self.most} and {self.queue})",
                    code="queue_full",
                    after=2,
                )
            room = self.room()
            if not self.busy and asker.planned > room:
                raise too_large(asker.planned, room)
            self._waiting.append(asker)
            self._changed.notify()

    def read(self, work: Job) -> "Future[Any]":
        """Have work done in pieces on the engine's thread, beside the answers."""
        reading = Reading(work)
        with self._changed:
            if self._stopping:
                raise Refusal(503, "the server is stopping", after=5)
            self._readings.append(reading)
            self._changed.notify()
        return reading.done

    def wake(self) -> None:
        """Somebody has gone."""
        with self._changed:
            self._changed.notify()

    def stop(self) -> None:
        """End the thread; who waits is told."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    @property
    def busy(self) -> int:
        """Answers that are being written."""
        return len(self._answering)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiting)

    @property
    def reading(self) -> int:
        """Documents that are being read or wait for it."""
        return len(self._readings)

    def room(self) -> int:
        """Bytes that one more request may plan with."""
        left = int(ROOM * machine.left(self.engine.device, self.limit))
        each = (max(asker.planned - asker.held, 0) for asker in tuple(self._answering))
        promised = sum(each)
        return max(left - promised, 0)

    # The thread

    def run(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP's number is each thread's own
        while self._wait():
            self._drop_gone()
            self._let_in()
            self._read_on()
            if self._writing:
                self._write()
            self._finish()
        self._end()

    def _wait(self) -> bool:
        """Wait until there is something to do; False: nothing any more."""
        with self._changed:
            slept = False
            while not (self._stopping or self._waiting or self._readings or self.busy):
                self.engine.writer.forget()
                self._changed.wait()
                slept = True
        if slept and not self._stopping:
            sleep(GATHERING)
        return not self._stopping

    def _drop_gone(self) -> None:
        with self._changed:
            before = len(self._waiting) + len(self._answering)
            self._waiting = deque(asker for asker in self._waiting if not asker.gone.is_set())
            self._answering = [asker for asker in self._answering if not asker.gone.is_set()]
            self.counts.cancelled += before - len(self._waiting) - len(self._answering)
        self._feeding.drop_gone()
        self._writing = [each for each in self._writing if not each[0].gone.is_set()]
        self._finishing = deque(each for each in self._finishing if not each[0].gone.is_set())

    def _let_in(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or self.busy >= self.most:
                    return
                asker, room = self._waiting[0], self.room()
                if asker.planned > room and self.busy:
                    return  # it is its turn, once somebody has gone
                self._waiting.popleft()
                if asker.planned <= room:
                    self._answering.append(asker)
                    self._feeding.add(asker)
                    next_one = None
                else:
                    next_one = asker
            if next_one is not None:
                self._fail(next_one, too_large(asker.planned, room))

    def _read_on(self) -> None:
        """Read questions, and documents, for a slice of time each."""
        end = perf_counter() + SLICE
        while not self._feeding.is_idle and perf_counter() < end:
            self._feeding.step()
        end = perf_counter() + SLICE
        while self._readings and perf_counter() < end:
            reading = self._readings[0]
            try:
                next(reading.work)
            except StopIteration as done:
                self._readings.popleft()
                reading.done.set_result(done.value)
            except Exception as error:
                self._readings.popleft()
                reading.done.set_exception(told(error))

    def _finish(self) -> None:
        """See where answers are from whose last token is there, for a slice of time."""
        end = perf_counter() + SLICE
        while self._finishing and perf_counter() < end:
            asker, work = self._finishing[0]
            try:
                next(work)
            except StopIteration:
                self._finishing.popleft()
                self.counts.finished += 1
                self._left(asker)
            except Exception as error:
                self._finishing.popleft()
                self._fail(asker, error)

    def _fed(self, asker: Asker, logits: torch.Tensor) -> None:
        self.counts.fed += len(asker.wanted.ids)
        if (token := self._take(asker, logits)) is not None:
            self._writing.append((asker, token))

    def _write(self) -> None:
        """A token more for every answer."""
        before, now = self._writing, perf_counter()
        try:
            caches = [asker.cache for asker, _ in before if asker.cache is not None]
            logits = self.engine.step(caches, [token for _, token in before])
        except Exception as error:
            self._writing = []
            for asker, _ in before:
                self._fail(asker, error)
            return
        taken = [
            (asker, self._take(asker, own)) for (asker, _), own in zip(before, logits, strict=True)
        ]
        self._writing = [(asker, token) for asker, token in taken if token is not None]
        self.counts.steps += 1
        self.counts.tokens += len(before)
        self.counts.decoding += perf_counter() - now

    def _take(self, asker: Asker, logits: torch.Tensor) -> int | None:
        """The next token of an answer; None if there is none."""
        try:
            with torch.inference_mode():
                token = asker.take(logits)
        except Exception as error:
            self._fail(asker, error)
            return None
        if token is None:
            self._finishing.append((asker, asker.finish()))
        return token

    def _left(self, asker: Asker) -> None:
        with self._changed:
            self._answering = [each for each in self._answering if each is not asker]

    def _fail(self, asker: Asker, error: Exception) -> None:
        self.counts.failed += 1
        self._left(asker)
        with suppress(Exception):
            asker.tell(Failed(told(error)))

    def _end(self) -> None:
        stopping = Refusal(503, "the server is stopping", after=5)
        with self._changed:
            left = [*self._waiting, *self._answering]
            readings, self._readings = self._readings, deque()
            self._waiting, self._writing, self._finishing = deque(), [], deque()
        self._feeding.clear()
        for asker in left:
            self._fail(asker, stopping)
        for reading in readings:
            reading.work.close()
            reading.done.set_exception(stopping)


def told(error: Exception) -> Exception:
    """The error as a client may know it; what is our fault stands in the log."""
    if is_out_of_memory(error):
        return KvchatError("memory", "memory ran out; the request was given up")
    if not isinstance(error, KvchatError | Refusal):
        LOG.error("%s: %s", type(error).__name__, error, exc_info=error)
    return error


def too_large(planned: int, room: int) -> Refusal:
    """The refusal of a request that does not fit even alone."""
    return Refusal(
        503,
        f"question and answer may take {size(planned)} of KV cache; {size(room)} are free",
        code="insufficient_memory",
        after=30,
    )
