"""Zip files that came from anywhere: caps on each member, on all that is read, and on its XML."""

import io
import zipfile
from typing import NoReturn
from xml.etree.ElementTree import Element

from kvchat.documents.xml import damaged, parsed
from kvchat.errors import KvchatError

MEMBER_CAP = 100 * 10**6  # bytes of one member
TOTAL_CAP = 200 * 10**6  # bytes of all members that are read
RATIO_CAP = 200  # times that a member may grow
ENTRIES_CAP = 65_535  # members; each takes half a kilobyte before anything is read
DIRECTORY = b"PK\x01\x02"  # what stands before each member's entry in the archive's directory


class Archive:
    """A zip file in memory. Every method raises KvchatError("input")."""

    def __init__(self, name: str, data: bytes):
        self.name = name
        self._read = 0
        if (count := data.count(DIRECTORY)) > ENTRIES_CAP:
            raise KvchatError(
                "input", f"{name} has {count:,} members; at most {ENTRIES_CAP:,} are read"
            )
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except Exception as error:  # the library raises many kinds for damaged files
            self.damaged(error)

    def __contains__(self, member: str) -> bool:
        return member in self._zip.NameToInfo

    def read(self, member: str) -> bytes:
        """The bytes of a member."""
        entry = self._zip.NameToInfo.get(member)
        if entry is None:
            self.damaged(f"{member} is missing")
        if entry.flag_bits & 1:
            raise KvchatError("input", f"{self.name} is encrypted", "save it without a password")
        grown = entry.file_size > RATIO_CAP * max(entry.compress_size, 1024)
        if entry.file_size > MEMBER_CAP or grown:
            raise KvchatError(
                "input",
                f"{self.name}: {member} has {entry.file_size:,} bytes, packed into "
                f"{entry.compress_size:,}; at most {MEMBER_CAP:,} and {RATIO_CAP}-fold are read",
            )
        self._read += entry.file_size
        if self._read > TOTAL_CAP:
            raise KvchatError(
                "input",
                f"{self.name}: what is packed in it has more than {TOTAL_CAP:,} bytes, the most "
                "that is read",
            )
        try:
            with self._zip.open(entry) as stream:
                return stream.read(MEMBER_CAP + 1)
        except Exception as error:  # as above
            self.damaged(error, member)

    def xml(self, member: str) -> Element:
        """A member as XML, without entities of its own: they could stand for anything."""
        data = self.read(member)
        try:
            return parsed(data)
        except Exception as error:  # any codec of Python's may be at work
            self.damaged(error, member)

    def damaged(self, why: object, member: str = "") -> NoReturn:
        """Raise what such a file deserves."""
        damaged(f"{self.name}: {member}" if member else self.name, why)
