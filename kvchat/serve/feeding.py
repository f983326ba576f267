"""Questions on their way into their caches: those that have come by then pass the layers together,
so that weights are read once for all of them."""

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvchat.engine.engine import Engine
from kvchat.engine.events import Progress
from kvchat.serve.asker import Asker

TOGETHER = 256  # tokens of questions that are fed at once: with more of them others wait too long
EARLY = 0.2  # of a group's work: until then it is sooner begun anew with who has come since


@dataclass
class Group:
    """Askers whose questions are fed by one piece of work after the other; the work's value are
    the logits `[B, vocab]` after each question. Who has gone is None."""

    askers: list[Asker | None]
    work: Generator[Any, None, Tensor]
    is_long: bool
    done: float = 0.0  # share of the work
    renewed: bool = False

    @property
    def there(self) -> list[Asker]:
        """Those who have not gone."""
        return [asker for asker in self.askers if asker is not None]


class Feeder:
    """Feeds questions, a piece at a time. `fed` is given the logits `[vocab]` after each of them,
    `failed` the error of one that cannot be fed."""

    def __init__(
        self,
        engine: Engine,
        fed: Callable[[Asker, Tensor], None],
        failed: Callable[[Asker, Exception], None],
    ):
        self.engine, self._fed, self._failed = engine, fed, failed
        self._new: deque[Asker] = deque()  # that wait for the group before them
        self._groups: deque[Group] = deque()
        self._singly = 0  # of those that wait, who are fed one by one: together they have failed

    @property
    def is_idle(self) -> bool:
        """Whether all questions are fed."""
        return not (self._new or self._groups)

    def add(self, asker: Asker) -> None:
        """Feed the question of an asker, behind those that are there."""
        self._new.append(asker)

    def drop_gone(self) -> None:
        """Forget those that have gone. A group goes on for the others in it."""
        self._new = deque(asker for asker in self._new if not asker.gone.is_set())
        for group in tuple(self._groups):
            group.askers = [None if a is None or a.gone.is_set() else a for a in group.askers]
            if not group.there:
                group.work.close()
                self._groups.remove(group)

    def clear(self) -> None:
        """Give up."""
        for group in self._groups:
            group.work.close()
        self._new, self._groups = deque(), deque()

    def step(self) -> None:
        """A piece of work: a layer for a few questions, or a chunk of a long one, in turn."""
        self._form()
        if not self._groups:
            return
        group = self._groups[0]
        try:
            event = next(group.work)
            if isinstance(event, Progress):
                group.done = event.done / event.total
            self._groups.rotate(-1)
        except StopIteration as done:
            self._groups.popleft()
            for asker, logits in zip(group.askers, done.value, strict=True):
                if asker is not None:
                    self._fed(asker, logits)
        except Exception as error:
            self._groups.popleft()
            if len(group.askers) == 1:
                self._failed(group.there[0], error)
            else:  # is it the work of all of them that fails?
                self._new.extendleft(reversed(group.there))
                self._singly = len(group.there)

    def _form(self) -> None:
        """Make a group of those that wait, unless there is one that is on its way: they gather
        meanwhile."""
        if not self._new:
            return
        there, renewed = list[Asker](), False
        if (group := next((each for each in self._groups if not each.is_long), None)) is not None:
            there, renewed = group.there, True
            tokens = sum(len(asker.wanted.ids) for asker in (*there, self._new[0]))
            if group.renewed or group.done > EARLY or tokens > TOGETHER or self._singly:
                return
            group.work.close()
            self._groups.remove(group)
        if not there:
            there = self._opened([self._new.popleft()])
        if alone := self._singly > 0:
            self._singly -= 1
        else:
            tokens, chosen = sum(len(asker.wanted.ids) for asker in there), []
            while self._new and (tokens := tokens + len(self._new[0].wanted.ids)) <= TOGETHER:
                chosen.append(self._new.popleft())
            there += self._opened(chosen)
        if there:
            self._groups.append(self._group(there, renewed, alone))

    def _opened(self, askers: list[Asker]) -> list[Asker]:
        return [asker for asker in askers if self._begun(asker)]

    def _begun(self, asker: Asker) -> bool:
        try:
            asker.begin(self.engine)
        except Exception as error:
            self._failed(asker, error)
            return False
        return True

    def _group(self, askers: list[Asker], renewed: bool, alone: bool) -> Group:
        """Those that are long, or fed alone, go in chunks that become smaller if memory ends."""
        ids = [asker.wanted.ids for asker in askers]
        caches = [asker.cache for asker in askers if asker.cache is not None]
        if alone or len(ids[0]) > TOGETHER:
            return Group([*askers], self._chunked(askers[0]), True)
        work = self.engine.extend_all(caches, ids)
        return Group([*askers], work, False, renewed=renewed)

    def _chunked(self, asker: Asker) -> Generator[Any, None, Tensor]:
        assert asker.cache is not None
        logits = yield from self.engine.extend(asker.cache, asker.wanted.ids)
        return logits[None]
