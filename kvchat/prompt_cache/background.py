"""A file that is written while the chat goes on."""

import threading
from collections.abc import Callable

from kvchat.engine.store.tensors import Stopped


class BackgroundSave:
    """What a thread writes while the chat goes on; `outcome` says how it ended.

    `at_once`: it is written now, and the chat waits.
    """

    def __init__(self, work: Callable[[Callable[[], bool]], str], at_once: bool = False):
        self._stop = threading.Event()
        self._work = work
        self.outcome: str | Exception | None = None
        self._thread = threading.Thread(target=self._run, name="save")
        if at_once:
            self._run()
        else:
            self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it is still being written."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Give it up; nothing of it stays."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it has ended, or for some seconds."""
        if self.running:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self.outcome = self._work(self._stop.is_set)
        except Stopped:
            return
        except Exception as error:  # the chat goes on; whatever it is will be told
            self.outcome = error
