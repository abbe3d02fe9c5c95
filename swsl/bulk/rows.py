"""Results as a table to read, or as CSV or JSON lines to process.

A file's name may be any bytes, and every output is UTF-8. So a byte that is no part of UTF-8 is written ``\\xff`` (the
backslash, x and two hexadecimal digits), as is NUL; and a backslash that happens to stand before such an ``xff`` in a name is
written ``\\x5c``. All other names stand as they are. Replacing each ``\\xNN`` by its byte gives the name back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict

from ..prediction import Result


def csv_header(top_k: int) -> str:
    """``path,error`` and then, for each of the ``top_k`` classes, ``label_N,index_N,probability_N``."""
    ranks = range(1, top_k + 1)
    return ",".join(["path", "error", *(f"label_{n},index_{n},probability_{n}" for n in ranks)]) + "\n"


def written_name(name: object) -> str:
    """How a path or URL is written into an output; see the top of this file."""
    return written_error(re.sub(r"\\(?=x[0-9a-f]{2})", r"\\x5c", str(name)))


def name_written(text: str) -> str:
    """The name that `written_name` has written so."""
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), text.encode()).decode(
        "utf-8", "surrogateescape"
    )


def written_error(error: object) -> str:
    """An error's text, which may hold a file's name, as any file or terminal takes it."""
    return (
        str(error)
        .encode("utf-8", "surrogateescape")
        .decode("utf-8", "backslashreplace")
        .replace("\0", r"\x00")
    )


def csv_row(result: Result, top_k: int) -> str:
    """One row for each image; a failed one has its error and no predictions."""
    cells = [written_name(result.source), written_error(result.error or "")]
    for prediction in result.predictions:
        # 9 digits bring a float32 back exactly.
        cells += (prediction.label, str(prediction.index), f"{prediction.probability:.9g}")
    return csv_line([*cells, *[""] * (2 + 3 * top_k - len(cells))])


def csv_line(cells: Sequence[str]) -> str:
    """Python's csv leaves a carriage return without quotes, and then does not read it back."""
    quoted = (
        f'"{cell.replace(chr(34), 2 * chr(34))}"' if re.search('[,"\r\n]', cell) else cell for cell in cells
    )
    return ",".join(quoted) + "\n"


def json_row(result: Result) -> str:
    """One JSON object a line for each image."""
    row: dict[str, object] = {"path": written_name(result.source)}
    if result.error:
        row["error"] = written_error(result.error)
    else:
        row["predictions"] = [asdict(prediction) for prediction in result.predictions]
    return json.dumps(row, ensure_ascii=False) + "\n"


def table_row(result: Result) -> str:
    """The path, and a line for each class; nothing for a failed image, whose error is on stderr."""
    if result.error:
        return ""
    lines = [
        written_name(result.source),
        *(f"  {p.probability:8.2%}  {p.label}" for p in result.predictions),
    ]
    return "\n".join(lines) + "\n"
