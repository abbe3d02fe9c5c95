"""Outputs of long runs: rows are kept as they come, and an interrupted run is continued.

While a run is under way its rows are in ``FILE.partial``, which becomes ``FILE`` by a rename when all are there. Each row is
an input, in the order of the inputs, so that the number of whole rows says where to go on, and a record beside the rows
(`swsl.bulk.run_record`) says with what. `swsl-classify` keeps CSV and JSON lines in the same way, and either program continues what
the other began. Parquet is in `swsl.bulk.parquet`.
"""

from __future__ import annotations

import csv
import ctypes
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..prediction import Result
from ..system.files import hand_down, replacing
from ..system.interrupts import held_back
from .rows import csv_header, csv_line, csv_row, json_row, written_error, written_name
from .run_record import Record, ResumeError, check_record, record_text


class BulkOutput:
    """Rows into ``FILE.partial``, then a rename. Use as a context manager around `write`; leaving it without an error
    completes the file.

    One process at a time: hold `swsl.bulk.run_record.locked` meanwhile.

    Args:
        target: the file to write, from `swsl.system.files.resolve_target`.
        record: what decides the rows.
        resume: go on with the rows that are in the ``.partial`` file, or else in the finished one; otherwise all is made anew.

    Raises:
        ResumeError: what is there was made with another model or other options.
        OSError: it cannot be written.
    """

    def __init__(self, target: Path, record: Record, *, resume: bool) -> None:
        self.target = target
        self.partial = target.with_name(target.name + ".partial")
        self.record = record
        self.rows = 0
        self.complete = False
        """Whether the finished file is there and, so far, all that is needed."""
        if resume and self._has_rows():
            check_record(self.partial, self._record_of(self.partial), record)
            self._open(True)
        elif resume and target.exists():
            check_record(target, self._record_of(target), record)
            self.complete = True
            self.rows = sum(1 for _ in self._names(target))
            self._remove()
        else:
            self._open(False)

    def remaining(self, inputs: Iterable[str]) -> Iterator[str]:
        """The inputs that have no row yet, after a check that those which have one are the ones expected.

        Raises:
            ResumeError: the inputs are not those of the run that made the rows.
        """
        inputs = iter(inputs)
        path = self.target if self.complete else self.partial
        for row, done in enumerate(itertools.islice(self._names(path), self.rows), 1):
            found = next(inputs, None)
            if found is None or written_name(found) != done:
                raise ResumeError(
                    f"{path}: row {row} is of {done}, but input {row} is now "
                    f"{'missing' if found is None else written_name(found)}; give the same inputs, or start anew without "
                    "--resume"
                )
        for name in inputs:
            if self.complete:  # so far; a copy goes on, and the file stays until that is whole
                self._copy_back()
                self._open(True)
                self.complete = False
            yield name

    def write(self, results: Sequence[Result]) -> None:
        self._append(results)
        self.rows += len(results)

    def __enter__(self) -> BulkOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.complete:
            return
        self._close(complete=kind is None)
        if not self.complete and not self.rows:
            self._remove()

    def _has_rows(self) -> bool:
        """Whether an interrupted run has left any."""
        raise NotImplementedError

    def _record_of(self, path: Path) -> str | bytes | None:
        raise NotImplementedError

    def _open(self, resume: bool) -> None:
        """The partial file, and `rows` as many as it has."""
        raise NotImplementedError

    def _names(self, path: Path) -> Iterator[str]:
        """The paths of the rows, as they are written there."""
        raise NotImplementedError

    def _copy_back(self) -> None:
        """The finished file as the partial one, so that no kill leaves neither."""
        raise NotImplementedError

    def _append(self, results: Sequence[Result]) -> None:
        raise NotImplementedError

    def _close(self, complete: bool) -> None:
        """Sets `complete` once the file has its name."""
        raise NotImplementedError

    def _remove(self) -> None:
        """What there is of a partial file, which has no row."""
        raise NotImplementedError


class _Lines:
    """A file of records that end in a newline, appended to in whole records."""

    def __init__(self, path: Path, header: str, resume: bool) -> None:
        self.path, self.header = path, header
        self.records = 0
        self.file: BinaryIO = open(path, "ab" if resume else "wb", buffering=0)  # noqa: SIM115
        if resume:
            self.keep(None)
        if header and not self.records:
            self.append(header)
            self.records = 1

    def keep(self, records: int | None) -> None:
        """The first records, or all that are whole."""
        size, self.records = whole_records(self.path, bool(self.header), records)
        self.file.truncate(size)

    def append(self, text: str) -> None:
        # One write: a killed run leaves whole records, but for the last at most.
        data = memoryview(text.encode())
        while data:
            data = data[self.file.write(data) :]

    def close(self, rename_to: Path | None) -> None:
        if rename_to:
            os.fsync(self.file.fileno())
        self.file.close()
        if rename_to:
            hand_down(rename_to, self.path)
            os.replace(self.path, rename_to)


def whole_records(path: Path, csv: bool, limit: int | None = None) -> tuple[int, int]:
    """The bytes and the number of the first ``limit`` records; a newline within quotes ends none in CSV."""
    size = records = end = quotes = 0
    with open(path, "rb") as file:
        for line in file:
            if limit is not None and records == limit:
                break
            size += len(line)
            quotes += line.count(b'"') if csv else 0
            if line.endswith(b"\n") and quotes % 2 == 0:
                end, records = size, records + 1
    return end, records


def _first_cells(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8", newline="") as file:
        for row in itertools.islice(csv.reader(file), 1, None):
            yield row[0]


class _FileOutput(BulkOutput):
    """Rows in a file, and their record in another beside it."""

    def _record_of(self, path: Path) -> bytes | None:
        try:
            return _record_path(path).read_bytes()
        except FileNotFoundError:
            return None

    def _write_record(self, path: Path) -> None:
        with replacing(_record_path(path)) as temporary:
            temporary.write_text(record_text(self.record), "utf-8")

    def _copy_back(self) -> None:
        self._write_record(self.partial)
        with replacing(self.partial) as temporary:
            shutil.copyfile(self.target, temporary)

    def _remove(self) -> None:
        self.partial.unlink(missing_ok=True)
        _record_path(self.partial).unlink(missing_ok=True)


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".run.json")


class _LinesOutput(_FileOutput):
    _header = ""

    def _has_rows(self) -> bool:
        return self.partial.exists() and whole_records(self.partial, bool(self._header))[1] > bool(
            self._header
        )

    def _open(self, resume: bool) -> None:
        self._lines = _Lines(self.partial, self._header, resume)
        self.rows = self._lines.records - bool(self._header)
        if not resume:  # after its rows are gone: rows never have another run's record
            self._write_record(self.partial)

    def _close(self, complete: bool) -> None:
        with held_back():
            if complete:  # while there is a partial file, the finished one's record is not asked for
                self._write_record(self.target)
            self._lines.close(self.target if complete else None)
            if complete:
                _record_path(self.partial).unlink()
            self.complete = complete


class CsvOutput(_LinesOutput):
    """One row for each image; see `csv_header`."""

    def __init__(self, target: Path, record: Record, *, resume: bool, top_k: int) -> None:
        self._top_k, self._header = top_k, csv_header(top_k)
        super().__init__(target, record, resume=resume)

    def _names(self, path: Path) -> Iterator[str]:
        return _first_cells(path)

    def _append(self, results: Sequence[Result]) -> None:
        self._lines.append("".join(csv_row(result, self._top_k) for result in results))


class JsonOutput(_LinesOutput):
    """One JSON object a line for each image."""

    def _names(self, path: Path) -> Iterator[str]:
        with open(path, encoding="utf-8", newline="\n") as file:
            for line in file:
                yield json.loads(line)["path"]

    def _append(self, results: Sequence[Result]) -> None:
        self._lines.append("".join(json_row(result) for result in results))


class NpyOutput(_FileOutput):
    """Embeddings as a float32 array N×features, and beside it ``FILE.paths.csv`` with the path and the error of each row.
    The row of a failed image is NaN."""

    _HEADER_BYTES = 128

    def __init__(self, target: Path, record: Record, *, resume: bool, features: int) -> None:
        self._features = features
        self._names_file = target.with_name(target.name + ".paths.csv")
        self._names_partial = self._names_file.with_name(self._names_file.name + ".partial")
        super().__init__(target, record, resume=resume)

    def _has_rows(self) -> bool:
        if not self.partial.exists() or self.partial.stat().st_size <= self._HEADER_BYTES:
            return False
        if not self._names_partial.exists() and self._names_file.exists():
            os.replace(self._names_file, self._names_partial)  # killed between the two renames at the end
        return self._whole_rows() > 0

    def _whole_rows(self) -> int:
        whole = (self.partial.stat().st_size - self._HEADER_BYTES) // (4 * self._features)
        names = whole_records(self._names_partial, True)[1] if self._names_partial.exists() else 0
        return max(0, min(whole, names - 1))

    def _open(self, resume: bool) -> None:
        if resume:
            self.rows = self._whole_rows()
        self._paths = _Lines(
            self._names_partial, "path,error\n", resume
        )  # first: a partial file without it was being completed
        self._file: BinaryIO = open(self.partial, "r+b" if resume else "w+b", buffering=0)  # noqa: SIM115
        self._paths.keep(self.rows + 1)
        self._file.truncate(self._HEADER_BYTES + self.rows * 4 * self._features if self.rows else 0)
        self._write_header()
        if not resume:
            self._write_record(self.partial)

    def _write_header(self) -> None:
        description = (
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({self.rows}, {self._features}), }}"
        )
        header = b"\x93NUMPY\x01\x00" + (self._HEADER_BYTES - 10).to_bytes(2, "little")
        self._file.seek(0)
        self._file.write(header + description.ljust(self._HEADER_BYTES - 11).encode() + b"\n")

    def _names(self, path: Path) -> Iterator[str]:
        return _first_cells(self._names_file if path == self.target else self._names_partial)

    def _copy_back(self) -> None:
        with replacing(self._names_partial) as temporary:
            shutil.copyfile(self._names_file, temporary)
        super()._copy_back()

    def _append(self, results: Sequence[Result]) -> None:
        failed = b"\x00\x00\xc0\x7f" * self._features  # float32 NaN
        data = memoryview(
            b"".join(failed if r.embedding is None else float32_bytes(r.embedding) for r in results)
        )
        self._file.seek(0, os.SEEK_END)
        while data:
            data = data[self._file.write(data) :]
        rows = ([written_name(r.source), written_error(r.error or "")] for r in results)
        self._paths.append("".join(map(csv_line, rows)))

    def write(self, results: Sequence[Result]) -> None:
        super().write(results)
        self._write_header()  # last: what it counts is all there

    def _close(self, complete: bool) -> None:
        with held_back():
            if complete:
                self._write_record(self.target)
                os.fsync(self._file.fileno())
            self._file.close()
            self._paths.close(self._names_file if complete else None)
            if complete:
                hand_down(self.target, self.partial)
                os.replace(self.partial, self.target)
                _record_path(self.partial).unlink()
            self.complete = complete

    def _remove(self) -> None:
        super()._remove()
        self._names_partial.unlink(missing_ok=True)


def float32_bytes(row: Any) -> bytes:
    row = row.float().contiguous()
    return ctypes.string_at(row.data_ptr(), 4 * row.numel())
