"""Predictions, embeddings and logits as Parquet: see `swsl.bulk.outputs`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..prediction import Output, Result
from ..system.files import replacing
from ..system.interrupts import held_back
from .outputs import BulkOutput, float32_bytes
from .rows import written_error, written_name
from .run_record import Record, record_text

RECORD_KEY = b"swsl.run"
"""Of the run record, in a file's metadata."""


class Columns:
    """What the rows of a Parquet file are made of: ``path``, ``error`` and what was asked for: ``label``, ``index`` and
    ``probability``, lists with the likeliest first, and ``embedding`` and ``logits``, lists of float32 of one length, null where the
    image failed.

    Args:
        outputs: what each result has.
        widths: the numbers in an embedding and in logits, where these are among the outputs.
        record: goes into the schema's metadata.

    Raises:
        ImportError: pyarrow is not there.
    """

    def __init__(
        self, outputs: Sequence[Output], widths: Mapping[Output, int], record: Record | None = None
    ) -> None:
        try:
            import pyarrow as pa
        except ImportError as error:
            raise ImportError("Parquet needs pyarrow: pip install pyarrow") from error
        columns: list[tuple[str, Any]] = [("path", pa.string()), ("error", pa.string())]
        if "predictions" in outputs:
            columns += [("label", pa.list_(pa.string())), ("index", pa.list_(pa.int32()))]
            columns += [("probability", pa.list_(pa.float32()))]
        self._vectors = [name for name in outputs if name != "predictions"]
        columns += [(name, pa.list_(pa.float32(), widths[name])) for name in self._vectors]
        self._pa = pa
        self.schema = pa.schema(columns, metadata={RECORD_KEY: record_text(record)} if record else None)

    def table(self, results: Sequence[Result]) -> Any:
        """The results as a pyarrow.Table of this schema."""
        columns: dict[str, Any] = {"path": [written_name(r.source) for r in results]}
        columns["error"] = [written_error(r.error) if r.error else None for r in results]
        if "label" in self.schema.names:
            for name in ("label", "index", "probability"):
                columns[name] = [[getattr(p, name) for p in r.predictions] for r in results]
        for vector in self._vectors:
            columns[vector] = self._column([getattr(result, vector) for result in results], vector)
        return self._pa.table(columns, schema=self.schema)

    def _column(self, rows: Sequence[Tensor | None], name: str) -> Any:
        """A column of vectors, without a Python object for each of their numbers."""
        pa, kind = self._pa, self.schema.field(name).type
        data = b"".join(bytes(4 * kind.list_size) if row is None else float32_bytes(row) for row in rows)
        numbers = pa.Array.from_buffers(pa.float32(), len(data) // 4, [None, pa.py_buffer(data)])
        there = pa.array([row is not None for row in rows]).buffers()[1]
        return pa.FixedSizeListArray.from_buffers(kind, len(rows), [there], children=[numbers])


class ParquetOutput(BulkOutput):
    """`Columns` through pyarrow. ``FILE.partial`` is a folder of parts, each a whole file with the record in its metadata.

    Args:
        target, record, resume: see `BulkOutput`.
        outputs: what each result has.
        widths: the numbers in an embedding and in logits, where these are among the outputs.
    """

    _PART_ROWS = 4096

    def __init__(
        self,
        target: Path,
        record: Record,
        *,
        resume: bool,
        outputs: Sequence[Output],
        widths: Mapping[Output, int],
    ) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(f"{target}: Parquet needs pyarrow: pip install pyarrow") from error
        self._columns = Columns(outputs, widths, record)
        self._parquet = pyarrow.parquet
        self._waiting: list[Result] = []
        super().__init__(target, record, resume=resume)

    def _has_rows(self) -> bool:
        return bool(self._parts())

    def _record_of(self, path: Path) -> bytes | None:
        with open(self._parts()[0] if path == self.partial else path, "rb") as file:
            return (self._parquet.read_schema(file).metadata or {}).get(RECORD_KEY)

    def _open(self, resume: bool) -> None:
        self._clear(self._litter() if resume else [*self._litter(), *self._parts()])
        self.partial.mkdir(exist_ok=True)
        self.rows = 0
        for part in self._parts():
            with open(part, "rb") as file:  # pyarrow takes no name that is no UTF-8
                self.rows += self._parquet.read_metadata(file).num_rows

    def _parts(self) -> list[Path]:
        return sorted(self.partial.glob("[0-9]" * 8 + ".parquet"))

    def _litter(self) -> list[Path]:
        """Parts that a killed run had not finished."""
        return list(self.partial.glob("." + "[0-9]" * 8 + ".parquet.*"))

    @staticmethod
    def _clear(files: Sequence[Path]) -> None:
        for file in reversed(files):  # a kill amid them leaves the first rows, which can be gone on with
            file.unlink()

    def _names(self, path: Path) -> Iterator[str]:
        for file in self._parts() if path == self.partial else [path]:
            with open(file, "rb") as opened:
                for batch in self._parquet.ParquetFile(opened).iter_batches(columns=["path"]):
                    yield from batch.column(0).to_pylist()

    def _copy_back(self) -> None:
        self.partial.mkdir(exist_ok=True)
        with replacing(self._next_part()) as temporary:
            shutil.copyfile(self.target, temporary)

    def _next_part(self) -> Path:
        return self.partial / f"{len(self._parts()):08d}.parquet"

    def _append(self, results: Sequence[Result]) -> None:
        self._waiting += results
        if len(self._waiting) >= self._PART_ROWS:
            self._write_part()

    def _write_part(self) -> None:
        if not self._waiting:
            return
        with replacing(self._next_part()) as temporary, open(temporary, "wb") as file:
            self._parquet.write_table(self._columns.table(self._waiting), file)
        self._waiting = []

    def _close(self, complete: bool) -> None:
        self._write_part()
        if not complete:
            return
        with (
            replacing(self.target) as temporary,
            open(temporary, "wb") as whole,
            self._parquet.ParquetWriter(whole, self._columns.schema) as writer,
        ):
            for part in self._parts():
                with open(part, "rb") as file:
                    for batch in self._parquet.ParquetFile(file).iter_batches():
                        writer.write_batch(batch)
        with held_back():
            self._clear(self._parts())
            self._remove()
            self.complete = True

    def _remove(self) -> None:
        self._clear(self._litter())
        with contextlib.suppress(OSError):  # it is not there, or somebody has put something into it
            self.partial.rmdir()
