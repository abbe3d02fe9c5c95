"""Results as a table to read, or as CSV or JSON lines to process."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from .prediction import Result


def csv_header(top_k: int) -> str:
    """``path,error`` and then, for each of the ``top_k`` classes, ``label_N,index_N,probability_N``."""
    ranks = range(1, top_k + 1)
    return ",".join(["path", "error", *(f"label_{n},index_{n},probability_{n}" for n in ranks)]) + "\n"


def csv_row(result: Result, top_k: int) -> str:
    """One row for each image; a failed one has its error and no predictions."""
    cells: list[object] = [result.source, result.error or ""]
    for prediction in result.predictions:
        # 9 digits bring a float32 back exactly.
        cells += (prediction.label, prediction.index, f"{prediction.probability:.9g}")
    cells += [""] * (2 + 3 * top_k - len(cells))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def json_row(result: Result) -> str:
    """One JSON object a line for each image."""
    row: dict[str, object] = {"path": str(result.source)}
    if result.error:
        row["error"] = str(result.error)
    else:
        row["predictions"] = [asdict(prediction) for prediction in result.predictions]
    return json.dumps(row, ensure_ascii=False) + "\n"


def table_row(result: Result) -> str:
    """The path, and a line for each class; nothing for a failed image, whose error is on stderr."""
    if result.error:
        return ""
    lines = [str(result.source), *(f"  {p.probability:8.2%}  {p.label}" for p in result.predictions)]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def open_output(path: str | None) -> Iterator[TextIO]:
    """A text file that gets its name only once it is whole; stdout for None."""
    if path is None:
        yield sys.stdout
        return
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        yield file


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it when the block ends well and removed when it does not."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{path}: is a directory; expected the name of a file to write")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}; make it first")
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
