"""What a user names on a command line, as a stream of images."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

from ..system.progress import say

IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs",
    ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi", ".psd", ".pcx", ".sgi", ".dds",
    ".ico",
))  # fmt: skip
"""Which files of a folder count as images: those of the formats that Pillow reads whose suffix says nothing else. A file named on
its own is tried whatever its suffix."""

UNREAD_SUFFIXES = frozenset((
    ".heic", ".heif", ".hif", ".jxl", ".jxr", ".exr", ".hdr", ".svg", ".eps", ".xcf", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw",
    ".arw", ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f",
))  # fmt: skip
"""Images too, which are not read. Of a DNG and its like, which are TIFFs, Pillow would take the thumbnail."""

_HIDDEN_FOLDERS = frozenset(
    {"@eaDir", "__MACOSX"}
)  # thumbnails of a Synology NAS, what a Mac adds to archives


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name, met in a folder, is no image and no class: ``.ipynb_checkpoints``, the ``._photo.jpg``
    that a Mac leaves beside each file, and the like."""
    return name.startswith(".") or name in _HIDDEN_FOLDERS


class Skipped:
    """What was left out of folders, for one line that counts it."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self.unlisted: list[str] = []
        """Folders that could not be listed. They are in no line: each is an error of its own."""

    def add(self, kind: str, path: str) -> None:
        self._counts[kind] += 1
        self._examples.setdefault(kind, path)

    def report(self) -> None:
        """Print the line on stderr, if there is anything to say."""
        parts = [
            f"{count:,} {kind} ({self._examples[kind]}{', …' * (count > 1)})"
            for kind, count in self._counts.items()
        ]
        if parts:
            say(f"swsl: skipped: {', '.join(parts)}")


def why_no_images(folder: str | os.PathLike[str]) -> str:
    """What is wrong with a folder that has yielded no image.

    Raises:
        OSError: it cannot be listed.
    """
    with os.scandir(folder) as entries:
        empty = next(entries, None) is None
    return (
        f"{folder}: this folder is empty" if empty else f"{folder}: holds no image of a format that is read"
    )


def find_images(arguments: Iterable[str], *, report: bool = True) -> Iterator[str]:
    """Paths and URLs, one by one: files and URLs as they are, folders recursively in sorted order, "-" for a path or
    URL a line on stdin. A folder without images, or one that cannot be listed, comes in their place, which is then an image that
    cannot be used.

    Nothing is listed ahead of need, so a million paths on stdin stay a stream.

    Args:
        arguments: what the user has named.
        report: print a line at the end that counts what was skipped.
    """
    skipped = Skipped()
    for argument in arguments:
        if argument == "-":
            yield from filter(None, _lines_of_stdin())
        elif os.path.isdir(argument):
            found = False
            for path in walk_images(argument, skipped):
                found = True
                yield path
            if not found:
                yield argument
        else:
            yield argument
    if report:
        skipped.report()


def _lines_of_stdin() -> Iterator[str]:
    """As they come, and past the lock of `sys.stdin`: a thread that waits in there would not let the interpreter end."""
    rest = b""
    while data := os.read(sys.stdin.fileno(), 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        yield from (os.fsdecode(line.removesuffix(b"\r")) for line in lines)
    yield os.fsdecode(rest.removesuffix(b"\r"))


def walk_images(folder: str, skipped: Skipped, *, follow_links: bool = False) -> Iterator[str]:
    """The images in a folder and its folders: a folder's files, then its folders, each in the order of their names' bytes.

    Images are regular files and links to such. So is a link that leads nowhere, and a folder that cannot be listed comes as
    itself: opening them says what is wrong. Hidden files and folders, pipes and the like, and images of formats that are not read
    go to ``skipped``.

    Args:
        folder: taken whatever its name.
        skipped: gets what is left out.
        follow_links: enter folders that are links, but for those that lead back to where they are.
    """
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        parent, above = waiting.pop()
        try:
            if follow_links:
                status = os.stat(parent)
                if (status.st_dev, status.st_ino) in above:
                    skipped.add("links to folders that they are in", parent)
                    continue
                above |= {(status.st_dev, status.st_ino)}
            with os.scandir(parent) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError:
            skipped.unlisted.append(parent)
            yield parent
            continue
        folders = []
        for entry in entries:
            if _is_folder(entry):
                if is_hidden(entry.name):
                    skipped.add("hidden files and folders", entry.path)
                elif entry.is_symlink() and not follow_links:
                    skipped.add("links to folders", entry.path)
                else:
                    folders.append((entry.path, above))
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in UNREAD_SUFFIXES and not is_hidden(entry.name):
                skipped.add(f"{suffix} images", entry.path)
            elif suffix in IMAGE_SUFFIXES:
                if is_hidden(entry.name):
                    skipped.add("hidden files and folders", entry.path)
                elif _is_file(entry):
                    yield entry.path
                else:
                    skipped.add("pipes, sockets and devices", entry.path)
        waiting += reversed(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file() or not os.path.exists(entry.path)
    except OSError:
        return True
