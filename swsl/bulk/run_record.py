"""What made a file of rows, and who writes to it now: rows of two models, two sets of options or two writers never mix.

Beside ``FILE.csv``, ``.jsonl`` or ``.npy`` lies ``FILE.run.json``, and beside a partial file ``FILE.partial.run.json``: one JSON
object with everything that decides a row. Parquet has it in its metadata. `swsl-classify` writes and reads the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..deploy.protocol import AnyRunner

Record = dict[str, "str | int | bool | None"]


class ResumeError(RuntimeError):
    """A file of rows that cannot be continued with these inputs or options."""


class OutputBusyError(RuntimeError):
    """Another process writes to the same file."""


def run_record(runner: AnyRunner, *, outputs: Sequence[str], top_k: int | None = None) -> Record:
    """What decides the rows of a run. The engine is no part of it: those of one dtype agree within the tolerance.

    Args:
        outputs: one or more of "predictions", "embedding" and "logits", in this order.
        top_k: classes for each image, where predictions are asked for.
    """
    return {
        "model": runner.fingerprint,
        "dtype": runner.info.dtype,
        "exif_orientation": runner.exif_orientation,
        "dct_scaling": False,  # these two have no option on the command line
        "nvjpeg": False,
        "max_pixels": runner.max_pixels,
        "outputs": ",".join(outputs),
        "top_k": top_k if "predictions" in outputs else None,
    }


def record_text(record: Record) -> str:
    return json.dumps(record) + "\n"


def check_record(path: Path, text: str | bytes | None, record: Record) -> None:
    """That a file of rows was made as this run would make it.

    Args:
        path: the file of rows.
        text: its record; None where it has none.

    Raises:
        ResumeError: it was not; the message says what differs.
    """
    advice = "give the same model and options, or start anew without --resume"
    try:
        found = None if text is None else json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ResumeError(
            f"{path}: does not say what made it (an older version?); start anew without --resume"
        )
    if found.keys() != record.keys():
        only = [
            ", ".join(sorted(a.keys() - b.keys())) or "nothing else"
            for a, b in ((found, record), (record, found))
        ]
        raise ResumeError(
            f"{path}: was made by another version of swsl: its record has {only[0]} where this one has {only[1]}; start anew "
            "without --resume"
        )
    differences = [
        f"{name} {_shown(found[name])} and not {_shown(value)}"
        for name, value in record.items()
        if found[name] != value
    ]
    if differences:
        raise ResumeError(f"{path}: was made with {', '.join(differences)}; {advice}")


def _shown(value: object) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    return value[:16] if re.fullmatch("[0-9a-f]{64}", value) else value  # of a fingerprint enough to tell two


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """The block is the only writer to ``target``: the kernel's lock on ``FILE.lock``, which holds the writer's process number.

    Raises:
        OutputBusyError: another process, or another block of this one, has it.
        OSError: the folder cannot be written.
    """
    path = target.with_name(target.name + ".lock")
    handle = _lock(path, target)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is ours; who opened it meanwhile sees that it has no name
        os.close(handle)


def _lock(path: Path, target: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "that has just begun"
                raise OutputBusyError(
                    f"{target}: is being written by process {holder}; let it end, or give another -o"
                ) from None
            except OSError as error:  # some network file systems have no locks
                warnings.warn(
                    f"{path}: cannot be locked ({error.strerror}): nothing keeps a second run from {target}",
                    stacklevel=2,
                )
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed it just now
