"""Zip files that came from anywhere: members with caps on their size, XML without entities."""

import io
import zipfile
import zlib
from xml.etree import ElementTree

from kvchat.errors import KvchatError

MEMBER_CAP = 100 * 10**6  # bytes of one member
RATIO_CAP = 200  # times that a member may grow


class Archive:
    """A zip file in memory. Every method raises KvchatError("input")."""

    def __init__(self, name: str, data: bytes):
        self.name = name
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise self._damaged(str(error)) from None

    def __contains__(self, member: str) -> bool:
        return member in self._zip.NameToInfo

    def read(self, member: str) -> bytes:
        """The bytes of a member."""
        try:
            entry = self._zip.getinfo(member)
        except KeyError:
            raise self._damaged(f"{member} is missing") from None
        if entry.flag_bits & 1:
            raise KvchatError("input", f"{self.name} is encrypted", "save it without a password")
        grown = entry.file_size > RATIO_CAP * max(entry.compress_size, 1024)
        if entry.file_size > MEMBER_CAP or grown:
            raise KvchatError(
                "input",
                f"{self.name}: {member} has {entry.file_size:,} bytes, packed into "
                f"{entry.compress_size:,}; at most {MEMBER_CAP:,} and {RATIO_CAP}-fold are read",
            )
        try:
            with self._zip.open(entry) as stream:
                data = stream.read(MEMBER_CAP + 1)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
            raise self._damaged(f"{member}: {error}") from None
        return data

    def xml(self, member: str) -> ElementTree.Element:
        """A member as XML; a document type of its own is refused, for it can define entities."""
        data = self.read(member)
        if b"<!ENTITY" in data:
            raise self._damaged(f"{member} defines entities, which are not read")
        try:
            return ElementTree.fromstring(data)
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            raise self._damaged(f"{member}: {error}") from None

    def _damaged(self, why: str) -> KvchatError:
        return KvchatError("input", f"{self.name} is damaged: {why}", "save it as plain text")
