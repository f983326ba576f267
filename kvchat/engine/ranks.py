"""One program over several processes: the first rank runs it, the others compute their part of what
it asks its engine for.

Every public entry of an `Engine` (`devices.entry`) goes through `Lead` where there are others: it
says what it is about to do, and they do the same with theirs. What comes back is the same on all
ranks, but for caches: each has its part, and they are called by number. A generator is moved on
step by step, so a consumer that stops in between stops all of them.
"""

import io
import pickle
import signal
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.peers import Group
from kvchat.engine.prefill.prefill import Prefill
from kvchat.errors import KvchatError

Caches = dict[int, KVCache]


class Lead:
    """What the first rank says to the others.

    An error that all ranks meet alike (a KvchatError) leaves them in step. Any other leaves the
    others in the midst of something: then nothing more can be computed.
    """

    def __init__(self, group: Group):
        self.group = group
        self.loaded = 0  # models, of which the others have the last one
        self._busy = False  # in an entry: caches that change in there change everywhere
        self.lost: KvchatError | None = None
        self._numbers: weakref.WeakKeyDictionary[KVCache, int] = weakref.WeakKeyDictionary()
        self._next = self._works = 0
        self._later: list[tuple[str, int]] = []  # told before the next command

    def call(self, name: str, work: Callable[[], Any], args: Any) -> Any:
        """Do `work`, and have it done: entry `name` of the engine with these arguments."""
        if self._busy:
            return work()
        with self._in_step():
            self._say("call", name, args)
            return self._known(work())

    def steps(
        self, name: str, work: Generator[Any, Any, Any], args: Any
    ) -> Generator[Any, None, Any]:
        """The same for an entry that is a generator."""
        if self._busy:
            return (yield from work)
        self._works += 1
        number, ended = self._works, False
        with self._in_step():
            self._say("begin", name, args)
        try:
            while True:
                with self._in_step():
                    self._say("next", number)
                    try:
                        item = next(work)
                    except StopIteration as end:
                        ended, item = True, self._known(end.value)
                    except BaseException:
                        ended = True
                        raise
                if ended:
                    return item
                yield item
        finally:
            if not ended:
                work.close()
                self._later.append(("close", number))

    @contextmanager
    def changing(self, cache: KVCache, name: str, args: tuple[Any, ...]) -> Iterator[None]:
        """A cache changes by itself in here; see `mirrored`."""
        if self._busy:
            yield
            return
        with self._in_step():
            self._say("cache", name, (cache, *args))
            yield

    def load(self, *how: Any) -> None:
        """Let the others load their parts, in place of those of a model before."""
        self.loaded += 1
        with self._in_step():
            self._say("load", *how)

    @contextmanager
    def sharing(self, work: Callable[..., Any], *about: Any) -> Iterator[Group]:
        """Let the others do `work(*about, peers)`, and be among them in here, until it is done.

        Who leaves before leaves them in the midst of it.
        """
        with self._in_step():
            self._say("share", work, *about)
        try:
            yield self.group
        except BaseException:
            self.lost = self.lost or self._apart("what was shared out was given up")
            raise

    def _apart(self, why: str) -> KvchatError:
        """That the others are in the midst of something else."""
        return KvchatError(
            "device",
            f"the processes that hold the model are out of step: {why}",
            "start again",
            ranks=self.group.count,
        )

    def end(self) -> None:
        """Let the others go."""
        if self.lost is None:
            with self._in_step():
                self._say("end")

    def _known(self, value: Any) -> Any:
        for cache in caches_in(value):
            if cache not in self._numbers:
                self._numbers[cache] = self._next
                weakref.finalize(cache, self._later.append, ("drop", self._next))
                cache.mirror = self.changing
                self._next += 1
        return value

    def _say(self, *command: Any) -> None:
        if self.lost is not None:
            raise self.lost
        later, self._later[:] = self._later[:], ()
        text = io.BytesIO()
        pickler = pickle.Pickler(text)
        pickler.persistent_id = self._numbers_of  # type: ignore[method-assign]
        pickler.dump((later, command))
        self.group.send(text.getvalue())

    def _numbers_of(self, thing: Any) -> int | None:
        return self._numbers[thing] if isinstance(thing, KVCache) else None

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """What is said and done in here is done by all, or by nobody any more."""
        with uninterrupted():
            self._busy = True
            try:
                yield
            except KvchatError as error:
                if "ranks" in error.details:
                    self.lost = error
                raise
            except BaseException as error:
                self.lost = self._apart(type(error).__name__)
                raise
            finally:
                self._busy = False


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C comes behind this: in the midst of it the others would wait for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed and callable(before):
            before(signal.SIGINT, None)
        elif pressed and before == signal.SIG_DFL:
            signal.raise_signal(signal.SIGINT)


def caches_in(value: Any) -> list[KVCache]:
    """The caches of what an entry returns, in order."""
    if isinstance(value, KVCache):
        return [value]
    return list(value.caches) if isinstance(value, Prefill) else []


def follow(group: Group, load: Callable[..., Any]) -> None:
    """Do what the first rank says until it lets go.

    `load(*how)` is the engine. Raises KvchatError("device") if the first rank has ended.
    """
    engine: Any = None
    caches: Caches = {}
    works: dict[int, Generator[Any, None, Any]] = {}
    count = begun = 0

    def known(value: Any) -> None:
        nonlocal count
        for cache in caches_in(value):
            if not any(cache is other for other in caches.values()):
                caches[count] = cache
                count += 1

    while True:
        unpickler = pickle.Unpickler(io.BytesIO(group.send()))
        unpickler.persistent_load = caches.__getitem__  # type: ignore[method-assign]
        later, (what, *about) = unpickler.load()
        for how, number in later:
            if how == "drop":
                caches.pop(number, None)
            elif (work := works.pop(number, None)) is not None:
                work.close()
        if what == "end":
            return
        try:
            if what == "share":
                own, *given = about
                own(*given, group)
            elif what == "load":
                engine = load(*about)
            elif what == "call":
                name, args = about
                if name != "feed":
                    engine.writer.forget()
                known(getattr(engine, name)(*args))
            elif what == "begin":
                name, args = about
                begun += 1
                works[begun] = getattr(engine, name)(*args)
            elif what == "next":
                number = about[0]
                try:
                    next(works[number])
                except StopIteration as end:
                    del works[number]
                    known(end.value)
            else:
                name, (cache, *args) = about
                getattr(cache, name)(*args)
        except KvchatError as error:
            if what in ("load", "share") or "ranks" in error.details:
                raise
            works.pop(about[0] if what == "next" else 0, None)  # the first rank met it too
