"""Folders of several files that are written as one: their files whole or not at all, and never in place of somebody else's."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from .files import hand_down


def resolve_folder(folder: str | os.PathLike[str], what: str, is_ours: Callable[[Path], bool]) -> Path:
    """Where a writer of ``folder`` has to write: the end of its links.

    Args:
        folder: to be made, or empty, or one that ``is_ours`` knows.
        what: writes it, for the error: "an export for timm".
        is_ours: whether that has written the folder that it gets.

    Raises:
        OSError: it is a file, or holds files of others, or its parent is missing.
    """
    target = Path(os.path.realpath(folder))
    if target.is_dir():
        if any(target.iterdir()) and not is_ours(target):
            raise FileExistsError(
                f"{folder}: holds files that are not of {what}; expected a new or empty folder"
            )
    elif target.exists():
        raise NotADirectoryError(f"{folder}: is a file; expected the name of a folder to write")
    elif not target.parent.is_dir():
        raise FileNotFoundError(f"{folder}: there is no folder {target.parent}; make it first")
    return target


@contextlib.contextmanager
def replacing_folder(target: Path, sign: str, unfinished: str) -> Iterator[Path]:
    """A temporary folder to write to, of the same name. When the block ends well, its files replace those of ``target``, from
    `resolve_folder`, whose other files stay; nothing is left of it when it does not.

    Args:
        target: the folder.
        sign: name of the file without which nobody reads the folder, and by which it is known as ours. It comes last.
        unfinished: what ``sign`` says until all others are new: its readers refuse it, and the folder is still ours.

    Raises:
        OSError: the files cannot be written.
    """
    # All of it beside the target first: then renaming is all that is left to do.
    beside = next(path for path in (target, *target.parents) if path.is_dir())
    temporary = Path(tempfile.mkdtemp(dir=beside, prefix=f".{target.name}."))
    try:
        whole = temporary / target.name
        whole.mkdir()
        yield whole
        names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
        names.sort(key=Path(sign).__eq__)
        for name in names:
            hand_down(target / name, whole / name)
        if target.is_dir():
            (temporary / sign).write_text(unfinished, encoding="utf-8")
            os.replace(temporary / sign, target / sign)
            for name in names:
                (target / name).parent.mkdir(exist_ok=True)
                os.replace(whole / name, target / name)
        else:
            target.parent.mkdir(exist_ok=True)
            os.rename(whole, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
