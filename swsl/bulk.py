"""Outputs of long runs: rows are kept as they come, and an interrupted run is continued.

While a run is under way its rows are in ``FILE.partial``, which becomes ``FILE`` by a rename when all are there. Each row is
an input, in the order of the inputs, so that the number of whole rows says where to go on. `swsl-classify` keeps CSV and
JSON lines in the same way, and either program continues what the other began.
"""

from __future__ import annotations

import csv
import ctypes
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from .output import csv_header, csv_row, json_row, replacing
from .prediction import Result


class ResumeError(RuntimeError):
    """An interrupted run that cannot be continued with these inputs or options."""


class BulkOutput:
    """Rows into ``FILE.partial``, then a rename. Use as a context manager around `write`; leaving it without an error
    completes the file.

    Args:
        target: the file to write.
        resume: go on with the ``.partial`` file that is there; otherwise it is started anew.

    Raises:
        ResumeError: what is there was written with other options.
        OSError: it cannot be written.
    """

    def __init__(self, target: Path, *, resume: bool) -> None:
        self.target = target
        self.partial = target.with_name(target.name + ".partial")
        self.rows = 0
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist")
        self._open(resume and self.partial.exists())

    def remaining(self, inputs: Iterable[str]) -> Iterator[str]:
        """The inputs that have no row yet, after a check that those which have one are the ones expected.

        Raises:
            ResumeError: the inputs are not those of the interrupted run.
        """
        inputs = iter(inputs)
        for row, done in enumerate(self._finished(), 1):
            found = next(inputs, None)
            if found != done:
                raise ResumeError(
                    f"{self.partial}: row {row} is of {done}, but input {row} is now "
                    f"{'missing' if found is None else found}; give the same inputs, or start anew without --resume"
                )
        yield from inputs

    def write(self, results: Sequence[Result]) -> None:
        self._append(results)
        self.rows += len(results)

    def __enter__(self) -> BulkOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._close(complete=kind is None)

    def _open(self, resume: bool) -> None:
        raise NotImplementedError

    def _finished(self) -> Iterator[str]:
        raise NotImplementedError

    def _append(self, results: Sequence[Result]) -> None:
        raise NotImplementedError

    def _close(self, complete: bool) -> None:
        raise NotImplementedError


class _Lines:
    """A file of records that end in a newline, appended to in whole records."""

    def __init__(self, path: Path, header: str, resume: bool) -> None:
        self.path = path
        self.file: BinaryIO = open(path, "r+b" if resume else "w+b")  # noqa: SIM115
        self.header = header
        if resume:
            whole, self.records = self._whole_records()
            if header and not self.records:
                whole = 0
            self.file.truncate(whole)
        else:
            self.records = 0
        if header and not self.records:
            self.append(header)
            self.records = 1
        if header and self.first() != header:
            raise ResumeError(
                f"{path}: was begun with other options: its header is {self.first()[:80]!r}, expected {header[:80]!r}"
            )
        self.file.seek(0, os.SEEK_END)

    def _whole_records(self, limit: int | None = None) -> tuple[int, int]:
        """The bytes and the number of the first `limit` records; a newline within quotes ends none in CSV."""
        size = records = end = quotes = 0
        self.file.seek(0)
        for line in self.file:
            if limit is not None and records == limit:
                break
            size += len(line)
            quotes += line.count(b'"') if self.header else 0
            if line.endswith(b"\n") and quotes % 2 == 0:
                end, records = size, records + 1
        return end, records

    def keep(self, records: int) -> None:
        size, self.records = self._whole_records(records)
        self.file.truncate(size)
        self.file.seek(0, os.SEEK_END)

    def first(self) -> str:
        self.file.seek(0)
        return self.file.readline().decode("utf-8", "surrogateescape")

    def text(self) -> io.TextIOWrapper:
        return open(self.path, encoding="utf-8", errors="surrogateescape", newline="")

    def append(self, text: str) -> None:
        # One write: a killed run leaves whole records, but for the last at most.
        data = text.encode("utf-8", "surrogateescape")
        self.file.seek(0, os.SEEK_END)
        self.file.write(data)
        self.file.flush()

    def close(self, rename_to: Path | None) -> None:
        if rename_to:
            os.fsync(self.file.fileno())
        self.file.close()
        if rename_to:
            os.replace(self.path, rename_to)


class CsvOutput(BulkOutput):
    """One row for each image; see `csv_header`."""

    def __init__(self, target: Path, *, resume: bool, top_k: int) -> None:
        self._top_k = top_k
        super().__init__(target, resume=resume)

    def _open(self, resume: bool) -> None:
        self._lines = _Lines(self.partial, csv_header(self._top_k), resume)
        self.rows = self._lines.records - 1

    def _finished(self) -> Iterator[str]:
        with self._lines.text() as file:
            for row in itertools.islice(csv.reader(file), 1, self.rows + 1):
                yield row[0]

    def _append(self, results: Sequence[Result]) -> None:
        self._lines.append("".join(csv_row(result, self._top_k) for result in results))

    def _close(self, complete: bool) -> None:
        self._lines.close(self.target if complete else None)


class JsonOutput(BulkOutput):
    """One JSON object a line for each image."""

    def _open(self, resume: bool) -> None:
        self._lines = _Lines(self.partial, "", resume)
        self.rows = self._lines.records

    def _finished(self) -> Iterator[str]:
        with self._lines.text() as file:
            for line in itertools.islice(file, self.rows):
                yield json.loads(line)["path"]

    def _append(self, results: Sequence[Result]) -> None:
        self._lines.append("".join(json_row(result) for result in results))

    def _close(self, complete: bool) -> None:
        self._lines.close(self.target if complete else None)


class NpyOutput(BulkOutput):
    """Embeddings as a float32 array N×features, and beside it ``FILE.paths.csv`` with the path and the error of each row.
    The row of a failed image is NaN."""

    _HEADER_BYTES = 128

    def __init__(self, target: Path, *, resume: bool, features: int) -> None:
        self._features = features
        self._names = target.with_name(target.name + ".paths.csv")
        super().__init__(target, resume=resume)

    def _open(self, resume: bool) -> None:
        names = self._names.with_name(self._names.name + ".partial")
        if (
            resume and not names.exists() and self._names.exists()
        ):  # killed between the two renames at the end
            os.replace(self._names, names)
        resume = resume and names.exists()
        self._paths = _Lines(names, "path,error\n", resume)
        self._file: BinaryIO = open(self.partial, "r+b" if resume else "w+b")  # noqa: SIM115
        if resume:
            self._file.seek(0)
            header = self._file.read(self._HEADER_BYTES)
            if len(header) == self._HEADER_BYTES and f", {self._features})".encode() not in header:
                raise ResumeError(
                    f"{self.partial}: was begun with another model: expected {self._features} features"
                )
            whole = max(0, self._file.seek(0, os.SEEK_END) - self._HEADER_BYTES) // (4 * self._features)
            self.rows = min(whole, self._paths.records - 1)
            self._paths.keep(self.rows + 1)
            self._file.truncate(self._HEADER_BYTES + self.rows * 4 * self._features if self.rows else 0)
        self._write_header()

    def _write_header(self) -> None:
        description = (
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({self.rows}, {self._features}), }}"
        )
        header = b"\x93NUMPY\x01\x00" + (self._HEADER_BYTES - 10).to_bytes(2, "little")
        self._file.seek(0)
        self._file.write(header + description.ljust(self._HEADER_BYTES - 11).encode() + b"\n")
        self._file.flush()
        self._file.seek(0, os.SEEK_END)

    def _finished(self) -> Iterator[str]:
        with self._paths.text() as file:
            for row in itertools.islice(csv.reader(file), 1, self.rows + 1):
                yield row[0]

    def _append(self, results: Sequence[Result]) -> None:
        failed = b"\x00\x00\xc0\x7f" * self._features  # float32 NaN
        self._file.write(b"".join(failed if r.row is None else _float32_bytes(r.row) for r in results))
        self._file.flush()
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows((str(r.source), r.error or "") for r in results)
        self._paths.append(text.getvalue())

    def write(self, results: Sequence[Result]) -> None:
        super().write(results)
        self._write_header()  # last: what it counts is all there

    def _close(self, complete: bool) -> None:
        if complete:
            os.fsync(self._file.fileno())
        self._file.close()
        self._paths.close(self._names if complete else None)
        if complete:
            os.replace(self.partial, self.target)


class ParquetOutput(BulkOutput):
    """Predictions or embeddings as Parquet, through pyarrow. ``FILE.partial`` is a folder of parts, each a whole file."""

    _PART_ROWS = 4096

    def __init__(self, target: Path, *, resume: bool, features: int | None = None) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(f"{target}: Parquet needs pyarrow: pip install pyarrow") from error
        columns: list[tuple[str, Any]] = [("path", pa.string()), ("error", pa.string())]
        if features is None:
            columns += [("label", pa.list_(pa.string())), ("index", pa.list_(pa.int32()))]
            columns += [("probability", pa.list_(pa.float32()))]
        else:
            columns += [("embedding", pa.list_(pa.float32(), features))]
        self._pa, self._parquet, self._schema = pa, pyarrow.parquet, pa.schema(columns)
        self._waiting: list[Result] = []
        super().__init__(target, resume=resume)

    def _open(self, resume: bool) -> None:
        if self.partial.exists() and not resume:
            for part in self._parts():
                part.unlink()
        self.partial.mkdir(exist_ok=True)
        for part in self._parts():
            found = self._parquet.ParquetFile(part)
            if found.schema_arrow != self._schema:
                raise ResumeError(f"{part}: was begun with other options or another model")
            self.rows += found.metadata.num_rows

    def _parts(self) -> list[Path]:
        return sorted(self.partial.glob("[0-9]*.parquet"))

    def _finished(self) -> Iterator[str]:
        for part in self._parts():
            yield from self._parquet.read_table(part, columns=["path"])["path"].to_pylist()

    def _append(self, results: Sequence[Result]) -> None:
        self._waiting += results
        if len(self._waiting) >= self._PART_ROWS:
            self._write_part()

    def _write_part(self) -> None:
        if not self._waiting:
            return
        columns: dict[str, list[Any]] = {"path": [str(r.source) for r in self._waiting]}
        columns["error"] = [str(r.error) if r.error else None for r in self._waiting]
        if "embedding" in self._schema.names:
            columns["embedding"] = [None if r.row is None else r.row.tolist() for r in self._waiting]
        else:
            for name in ("label", "index", "probability"):
                columns[name] = [[getattr(p, name) for p in r.predictions] for r in self._waiting]
        table = self._pa.table(columns, schema=self._schema)
        with replacing(self.partial / f"{len(self._parts()):08d}.parquet") as temporary:
            self._parquet.write_table(table, temporary)
        self._waiting = []

    def _close(self, complete: bool) -> None:
        self._write_part()
        if not complete:
            return
        with (
            replacing(self.target) as temporary,
            self._parquet.ParquetWriter(temporary, self._schema) as writer,
        ):
            for part in self._parts():
                writer.write_table(self._parquet.read_table(part))
        for part in self._parts():
            part.unlink()
        self.partial.rmdir()


def _float32_bytes(row: Any) -> bytes:
    row = row.float().contiguous()
    return ctypes.string_at(row.data_ptr(), 4 * row.numel())
