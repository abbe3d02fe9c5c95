"""Files that are written: whole or not at all, through links, and never in place of a device, a pipe or a directory."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO


@contextlib.contextmanager
def open_output(path: str | None) -> Iterator[TextIO]:
    """A text file, by the rules of `replacing`; stdout for None."""
    if path is None:
        yield sys.stdout
        return
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        yield file


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, special: bool = True) -> Iterator[Path]:
    """A temporary path to write to. What is there becomes the content of ``path`` when the block ends well; nothing is left
    of it when it does not.

    A link stays one: its target is written. A file that is replaced hands down its mode, and its owner and group as far as
    the system allows. Into a device or a pipe the content is copied; without ``special`` these are refused.

    Raises:
        OSError: as `resolve_target` and `open_special`; or the content cannot be written.
    """
    target = resolve_target(path)
    copied = is_special(target)
    if copied and not special:
        raise OSError(f"{path}: is {_kind(target)}; expected the name of a file, which is to be read again")
    # Whole first, wherever it goes: its maker may want to seek, and nobody shall see half of it.
    handle, name = tempfile.mkstemp(
        dir=None if copied else target.parent, prefix=f".{target.name}.", suffix=target.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if copied:
            _copy(temporary, target, path)
        else:
            hand_down(target, temporary)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def resolve_target(path: str | os.PathLike[str]) -> Path:
    """Where a writer of ``path`` has to write: the end of a chain of links, whether or not there is a file yet. The name of an
    open descriptor (``/dev/stdout``, or a shell's ``>(command)``) is such an end.

    Raises:
        OSError: a directory, a missing folder, or links that go in circles.
    """
    target = Path(path)
    for _ in range(_MAX_LINKS):
        target = Path(os.path.realpath(target.parent), target.name)
        if _descriptor(target) is not None or not target.is_symlink():
            break
        following = target.parent / os.readlink(target)
        if target.exists() and not following.exists():
            break  # another process's pipe, whose link reads "pipe:[123]"
        target = following
    else:
        raise OSError(f"{path}: is a link that leads back to itself; remove it or name another file")
    if target.is_dir():
        raise IsADirectoryError(f"{path}: is a directory; expected the name of a file to write")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}; make it first")
    return target


def is_special(path: Path) -> bool:
    """Whether ``path``, from `resolve_target`, exists and is neither a regular file nor a directory: a device, a pipe, a
    socket, or a descriptor of this process, whatever that is open on. Such a thing is written into and never replaced."""
    if _descriptor(path) is not None:
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


def is_stdout(path: Path) -> bool:
    """Whether ``path``, from `resolve_target`, is this process's standard output by its name."""
    return _descriptor(path) == 1


def open_special(path: Path) -> BinaryIO:
    """A device or pipe, from `resolve_target`, to write into, unbuffered. A named pipe waits for its reader, as with every
    program.

    Raises:
        OSError: it cannot be opened, or is a socket or a block device, which nobody means.
    """
    number = _descriptor(path)
    if number is not None:
        sys.stdout.flush()  # what was printed comes first
        return os.fdopen(os.dup(number), "wb", buffering=0)
    mode = path.stat().st_mode
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        raise OSError(f"{path}: is {_kind(path)}; expected a file, a pipe or a character device")
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_NOCTTY), "wb", buffering=0)


_MAX_LINKS = 40  # as many as Linux follows


def _descriptor(path: Path) -> int | None:
    """N of ``/dev/fd/N`` with all but its last link followed; None for other paths."""
    ours = path.name.isdecimal() and os.fspath(path.parent) == os.path.realpath("/dev/fd")
    return int(path.name) if ours else None


def _kind(path: Path) -> str:
    mode = path.stat().st_mode
    tests = {"a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK, "a block device": stat.S_ISBLK, "a device": stat.S_ISCHR}  # fmt: skip
    return next((kind for kind, matches in tests.items() if matches(mode)), "an open descriptor")


def hand_down(target: Path, temporary: Path) -> None:
    """The mode and owner that a file at ``target`` has, or that a new one would get."""
    try:
        before = target.stat()
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        return
    # Only root gives files away, and others only to their groups: then the writer owns it, as after `mv`.
    for owner in ((-1, before.st_gid), (before.st_uid, -1)):
        with contextlib.suppress(OSError):
            os.chown(temporary, *owner)
    temporary.chmod(before.st_mode & 0o777)


def _copy(temporary: Path, target: Path, path: str | os.PathLike[str]) -> None:
    with open(temporary, "rb") as source, open_special(target) as sink:
        try:
            while piece := memoryview(source.read(1 << 20)):
                while piece:
                    piece = piece[sink.write(piece) :]
        except BrokenPipeError:
            raise  # its reader has seen enough
        except OSError as error:
            raise OSError(f"{path}: cannot be written: {error.strerror}") from error
