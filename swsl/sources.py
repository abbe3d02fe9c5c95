"""What a user names on a command line, as a stream of images."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""Which files of a folder count as images. A file named on its own is tried whatever its suffix."""


def find_images(arguments: Iterable[str]) -> Iterator[str]:
    """Paths and URLs, one by one: files and URLs as they are, folders recursively in sorted order, "-" for a path or
    URL a line on stdin.

    Nothing is listed ahead of need, so a million paths on stdin stay a stream.
    """
    for argument in arguments:
        if argument == "-":
            yield from filter(None, _lines_of_stdin())
        elif os.path.isdir(argument):
            yield from _walk(argument)
        else:
            yield argument


def _lines_of_stdin() -> Iterator[str]:
    """As they come, and past the lock of `sys.stdin`: a thread that waits in there would not let the interpreter end."""
    rest = b""
    while data := os.read(sys.stdin.fileno(), 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        yield from (os.fsdecode(line.removesuffix(b"\r")) for line in lines)
    yield os.fsdecode(rest.removesuffix(b"\r"))


def _walk(folder: str) -> Iterator[str]:
    found = False
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES:
                found = True
                yield os.path.join(parent, file)
    if not found:
        yield folder  # no image: decoding it reports the folder as the error it is
