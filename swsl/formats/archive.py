"""A zip file of the one kind that PyTorch writes, read strictly: the readable twin of cpp/src/model/archive.cpp.

Nothing is taken that could be read in two ways: one folder holds all entries, none of them overlap or come twice, and they are
stored as they are, but for the sources under ``code/``, which TorchScript alone reads.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import zlib
from itertools import pairwise
from typing import NamedTuple

# PKWARE's application note, section 4.3.
_LOCAL, _DIRECTORY, _END = (
    struct.Struct("<IHHHIIIIHH"),
    struct.Struct("<IHHHHIIIIHHHHHII"),
    struct.Struct("<IHHHHIIH"),
)
_LOCATOR, _END64 = struct.Struct("<IIQI"), struct.Struct("<IQHHIIQQQQ")
_LOCAL_SIGNATURE, _DIRECTORY_SIGNATURE, _END_SIGNATURE = 0x04034B50, 0x02014B50, 0x06054B50
_LOCATOR_SIGNATURE, _END64_SIGNATURE = 0x07064B50, 0x06064B50
_MOST_ENTRIES, _LONGEST_NAME = 10_000, 1_000
_MOST_SOURCE = 4 << 20  # of one file under code/, unpacked


class ArchiveError(Exception):
    """What is wrong with an archive. The message does not name the file."""


class Entry(NamedTuple):
    """Where an entry's bytes lie in the file, and what the directory says of them."""

    offset: int
    size: int
    crc: int
    stored: bool


class Archive:
    """The entries of a file by their names inside its folder ("extra/swsl.json"). The file is mapped, not read.

    Raises:
        ArchiveError: it is no regular file, or no archive of this kind.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # A pipe would wait for its writer.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise ArchiveError("it is no regular file")
            self.size = found.st_size
            if self.size < _END.size:
                raise ArchiveError("it does not end as a zip file does")
            # Private and writable, as torch.frombuffer wants it; nothing is written.
            self.bytes = memoryview(mmap.mmap(handle, self.size, access=mmap.ACCESS_COPY))
        finally:
            os.close(handle)
        self.entries = self._read_directory()

    def read(self, name: str) -> memoryview:
        """The bytes of a stored entry, checked against their CRC.

        Raises:
            ArchiveError: there is no such entry, or it is compressed or damaged.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise ArchiveError(f"it has no entry {name}")
        if not entry.stored:
            raise ArchiveError(f"its entry {name} is compressed, expected as it is")
        data = self.bytes[entry.offset : entry.offset + entry.size]
        if zlib.crc32(data) != entry.crc:
            raise ArchiveError(
                f"its entry {name} is damaged: its CRC is not the one that the directory states"
            )
        return data

    def _unpack(self, record: struct.Struct, offset: int) -> tuple[int, ...]:
        if not 0 <= offset <= self.size - record.size:
            raise ArchiveError("it ends too early")
        return record.unpack_from(self.bytes, offset)

    def _read_directory(self) -> dict[str, Entry]:
        at, end, count = self._find_directory()
        begin = at
        entries: dict[str, Entry] = {}
        ranges = []
        folder = ""
        for number in range(count):
            record = self._unpack(_DIRECTORY, at)
            signature, _, _, flags, method, _, crc, packed, unpacked, name_length, extra, comment = record[
                :12
            ]
            offset = record[-1]
            if signature != _DIRECTORY_SIGNATURE:
                raise ArchiveError("its directory is damaged")
            start = at + _DIRECTORY.size
            raw = bytes(self.bytes[start : start + name_length])
            if len(raw) < name_length:
                raise ArchiveError("it ends too early")
            name = raw.decode("utf-8", "backslashreplace")

            def refuse(why: str, name: str = name) -> ArchiveError:
                return ArchiveError(f"its entry {name} {why}")

            if not _is_plain(raw):
                raise refuse("has a name that no file in a folder has")
            inside = name[: name.find("/") + 1]
            folder = folder if number else inside
            if not inside or inside != folder:
                raise refuse("is not in the folder of the others")
            own = name.removeprefix(folder)
            if flags & 1:
                raise refuse("is encrypted")
            if method == 0 and packed != unpacked:
                raise refuse("has two sizes")
            if method != 0 and (method != 8 or not own.startswith("code/") or unpacked > _MOST_SOURCE):
                raise refuse("is compressed, expected as it is")
            local = self._unpack(_LOCAL, offset)
            name_start = offset + _LOCAL.size
            if (local[0], local[3], local[-2]) != (_LOCAL_SIGNATURE, method, name_length) or (
                self.bytes[name_start : name_start + name_length] != raw
            ):
                raise refuse("has another header than the directory says")
            data = name_start + name_length + local[-1]
            if data > begin or begin - data < packed:
                raise refuse("is longer than the file")
            if own in entries:
                raise refuse("comes twice")
            entries[own] = Entry(data, packed, crc, method == 0)
            ranges.append((offset, data + packed))
            at = start + name_length + extra + comment
        if at != end:
            raise ArchiveError("its directory is longer than its entries")
        ranges.sort()
        if ranges[0][0] != 0:
            raise ArchiveError("it does not begin with an entry")
        if any(following[0] < before[1] for before, following in pairwise(ranges)):
            raise ArchiveError("its entries overlap")
        return entries

    def _find_directory(self) -> tuple[int, int, int]:
        """Where the directory begins and ends, and how many entries it has."""
        end = self.size - _END.size
        signature, disk, first_disk, here, count, length, begin, comment = self._unpack(_END, end)
        if signature != _END_SIGNATURE:
            raise ArchiveError("it does not end as a zip file does")
        disagree = ArchiveError("the records at its end disagree")
        directory_end = end
        if end >= _LOCATOR.size:
            locator, _, place, _ = self._unpack(_LOCATOR, end - _LOCATOR.size)
            # PyTorch always writes the records for large files too; they have to say the same.
            if locator == _LOCATOR_SIGNATURE:
                directory_end = max(end - _LOCATOR.size - _END64.size, 0)
                (
                    signature64, size64, _, _, _, _, _, count64, length64, begin64,
                ) = self._unpack(_END64, directory_end)  # fmt: skip
                if (place, signature64, size64) != (directory_end, _END64_SIGNATURE, _END64.size - 12):
                    raise disagree
                if (count64, length64, begin64) != (count, length, begin):
                    raise disagree
        if disk or first_disk or here != count or comment or begin > directory_end:
            raise disagree
        if directory_end - begin != length:
            raise disagree
        if not 0 < count <= _MOST_ENTRIES:
            raise ArchiveError(f"it holds {count} entries, expected 1 to {_MOST_ENTRIES}")
        return begin, directory_end, count


def _is_plain(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    if len(name) > _LONGEST_NAME or b"\0" in name or b"\\" in name:
        return False
    return not any(part in (b"", b".", b"..") for part in name.split(b"/"))
