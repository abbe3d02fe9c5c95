"""Zip files whose records may say what is not so."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """An entry as its directory and its own header shall state it; what is None is what is true."""

    name: bytes
    data: bytes
    method: int = 0
    flags: int = 0
    crc: int | None = None
    size: int | None = None
    packed: int | None = None
    offset: int | None = None
    local_name: bytes | None = None
    local_method: int | None = None
    local_signature: bytes = b"PK\3\4"
    padding: int = 0
    hidden: bool = False  # in the directory alone


Items = list[Item]


def pack(items: Items, *, zip64: dict[int, int] | None = None, front: bytes = b"", **end: int) -> bytes:
    """A zip file of them. ``front``: before it, with offsets that count it; ``zip64``: with the record for large files, whose fields of these numbers are moved by so much;
    ``end``: by how much fields of the last record are."""
    body, directory = bytearray(front), bytearray()
    for item in items:
        crc = zlib.crc32(item.data) if item.crc is None else item.crc
        data = item.data
        if item.method == 8:
            squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
            data = squeeze.compress(data) + squeeze.flush()
        size = len(item.data) if item.size is None else item.size
        packed = len(data) if item.packed is None else item.packed
        offset = len(body) if item.offset is None else item.offset
        own = item.name if item.local_name is None else item.local_name
        method = item.method if item.local_method is None else item.local_method
        sizes = struct.pack("<III", crc, packed, size)
        head = struct.pack("<HHHHH", 20, item.flags, method, 0, 0)
        if not item.hidden:
            body += item.local_signature + head + sizes + struct.pack("<HH", len(own), item.padding) + own
            body += bytes(item.padding) + data
        head = struct.pack("<HHHHHH", 20, 20, item.flags, item.method, 0, 0)
        directory += b"PK\1\2" + head + sizes
        directory += struct.pack("<HHHHHII", len(item.name), 0, 0, 0, 0, 0, offset) + item.name
    begin, length, count = len(body), len(directory), len(items)
    tail = b""
    if zip64 is not None:
        fields = [0x06064B50, 44, 20, 20, 0, 0, count, count, length, begin]
        last = [0x07064B50, 0, begin + length, 1]
        for number, change in zip64.items():
            (fields if number < 10 else last)[number % 10] += change
        tail = struct.pack("<IQHHIIQQQQ", *fields) + struct.pack("<IIQI", *last)
    names = ("disk", "first_disk", "here", "count", "length", "begin", "comment")
    values = dict(zip(names, (0, 0, count, count, length, begin, 0), strict=True))
    changed = [values[name] + end.get(name, 0) for name in names]
    return bytes(body + directory) + tail + b"PK\5\6" + struct.pack("<HHHHIIH", *changed)
