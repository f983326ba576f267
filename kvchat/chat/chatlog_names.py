"""Names of saved chats that are being given: held until the chat's file says them, so that two
processes do not give one name to two chats."""

import fcntl
import os
from contextlib import suppress
from hashlib import sha256

from kvchat.chat import chatlog
from kvchat.errors import KvchatError
from kvchat.files import private_folder


class HeldName:
    """A name that no other process can take while this one holds it. A context, too.

    Raises KvchatError("session") if somebody else holds it, or if the folder takes no files.
    """

    def __init__(self, name: str):
        self.name = name
        self._path = chatlog.folder() / f".{sha256(name.encode()).hexdigest()[:32]}.lock"
        self._file = -1
        try:
            private_folder(chatlog.folder())
            while self._file < 0:
                self._try()
        except BlockingIOError:
            raise KvchatError(
                "session",
                f"{name!r} is being given to a chat by another kvchat",
                "try again, or take another name",
            ) from None
        except OSError as error:
            raise KvchatError(
                "session",
                f"the chat {name!r} cannot be saved in {chatlog.folder()}: {error.strerror}",
                "--no-save",
            ) from None

    def _try(self) -> None:
        file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):  # who held it before has just taken it away
                if os.fstat(file).st_ino == self._path.stat().st_ino:
                    self._file = file
        finally:
            if self._file < 0:
                os.close(file)

    def free(self) -> None:
        """Let go of the name."""
        if self._file >= 0:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "HeldName":
        return self

    def __exit__(self, *_: object) -> None:
        self.free()
