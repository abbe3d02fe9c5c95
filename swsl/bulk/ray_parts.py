"""The folder that a run on many machines writes: parts, each a whole Parquet file of rows, and what made them.

``_swsl.run.json`` is the record of `swsl.bulk.run_record`, which each part has in its metadata too. ``_swsl.checkpoint/`` is Ray Data's
while a run is under way: before a task writes a part it says so there, so that a part which a kill has cut off is known. Names that
begin with ``_`` are no data to whatever reads a folder of Parquet.

Which images are done is what the parts say, and nothing else: they are the rows. Ray's own way back (a filter of actors, which load the
checkpoint's identities) wants a CPU that our actors have and waits for it for ever, and where a rename is a copy, as in object stores,
a kill between the copy and the deletion of the old name makes it delete rows that it takes for kept.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..system.progress import say
from .ray_sources import Place, place_of
from .run_record import OutputBusyError, Record, ResumeError, check_record, locked, record_text

_PART = re.compile(r"\w+_[0-9a-f]{32}_\d{6}-\d+\.parquet")
_PENDING = ".pending.parquet"
_RECORD, _CHECKPOINT, _WRITER = "_swsl.run.json", "_swsl.checkpoint", "_swsl.writer"
_BEAT_S = 5.0
"""A writer's sign of life on a file system without locks."""


class Parts:
    """The rows of a folder.

    Args:
        name: the folder, on any file system that pyarrow knows.
        record: what decides the rows.
    """

    def __init__(self, name: str, record: Record) -> None:
        self.place: Place = place_of(name.rstrip("/"))
        self.record = record
        self.done: set[str] = set()
        """The images that have a row."""
        self.failed = 0
        """Those of them whose row is an error."""

    @property
    def checkpoint(self) -> str:
        return self._path(_CHECKPOINT)

    @property
    def record_path(self) -> str:
        return self._path(_RECORD)

    def count(self) -> int:
        """Parts that are there, some of them perhaps not whole."""
        return len(self._parts())

    def _path(self, name: str) -> str:
        return f"{self.place.path}/{name}"

    def _list(self, folder: str) -> list[str]:
        from pyarrow import fs

        return sorted(
            posixpath.basename(info.path) + "/" * (info.type == fs.FileType.Directory)
            for info in self.place.files.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        )

    def open(self, resume: bool) -> None:
        """Make the folder this run's.

        Raises:
            ResumeError: it has rows of another run, or of this one and ``resume`` is not given.
            FileExistsError: it has something that no run has made.
        """
        there = self._list(self.place.path)
        ours = {_RECORD, _CHECKPOINT + "/", _WRITER}
        strange = [name for name in there if name not in ours and not _PART.fullmatch(name)]
        parts = [name for name in there if _PART.fullmatch(name)]
        if strange or (parts and _RECORD not in there):
            raise FileExistsError(
                f"{self.place.name}: holds {(strange or parts)[0]}, which is no part of such a run; give a folder that is new or empty"
            )
        if parts and not resume:
            raise ResumeError(
                f"{self.place.name}: holds rows of an earlier run; --resume goes on with it, or give another folder"
            )
        if parts:
            with self.place.files.open_input_stream(self._path(_RECORD)) as file:
                check_record(Path(self.place.name), file.read(), self.record)
        self.place.files.create_dir(self.place.path, recursive=True)
        if not parts:  # else it is the same, and a kill amid writing it would leave rows without one
            with self.place.files.open_output_stream(self._path(_RECORD)) as file:
                file.write(record_text(self.record).encode())

    def settle(self) -> bool:
        """Find out which rows there are, after removing parts that are not whole, and all but one of those that have a row in common:
        a task that its driver's kill left running may have written a part behind the next run's back.

        Returns:
            Whether parts were removed.
        """
        from pyarrow import fs

        removed = False
        pending = [n.removesuffix(_PENDING) for n in self._list(self.checkpoint) if n.endswith(_PENDING)]
        for name in self._parts() if pending else ():
            if name.startswith(tuple(pending)):
                self.place.files.delete_file(self._path(name))
                removed = True
        if self.place.files.get_file_info(self.checkpoint).type == fs.FileType.Directory:
            self.place.files.delete_dir(self.checkpoint)  # last: until then a kill leaves what says so
        self.done, self.failed = set(), 0
        with ThreadPoolExecutor(16) as pool:
            names = self._parts()
            for name, (paths, failed) in zip(names, pool.map(self._rows, names), strict=True):
                if paths is None or not self.done.isdisjoint(paths) or len(set(paths)) < len(paths):
                    say(
                        f"swsl: {self.place.name}/{name} is {'not whole' if paths is None else 'of a run that was killed'}: its rows are "
                        "made anew"
                    )
                    self.place.files.delete_file(self._path(name))
                    removed = True
                    continue
                self.done.update(paths)
                self.failed += failed
        return removed

    def _parts(self) -> list[str]:
        return [name for name in self._list(self.place.path) if _PART.fullmatch(name)]

    def _rows(self, name: str) -> tuple[list[str] | None, int]:
        """A part's identities, None where it is not whole, and how many rows are errors."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with self.place.files.open_input_file(self._path(name)) as file:
                table = pq.ParquetFile(file).read(["path", "error"])
        except pa.ArrowInvalid:
            return None, 0
        return table["path"].to_pylist(), len(table) - table["error"].null_count

    @contextlib.contextmanager
    def only_writer(self) -> Iterator[None]:
        """No other run writes to the folder meanwhile: by a lock beside it, or in an object store by a sign of life within, which another
        run waits for.

        Raises:
            OutputBusyError: one does.
        """
        from pyarrow import fs

        if isinstance(self.place.files, fs.LocalFileSystem):
            Path(self.place.path).parent.mkdir(parents=True, exist_ok=True)
            with locked(Path(self.place.path)):
                yield
            return
        self._wait_for_silence()
        mine = f"process {os.getpid()} on {os.uname().nodename}, {uuid.uuid4().hex}"
        ended = threading.Event()
        self._beat(mine, 0)
        time.sleep(_BEAT_S / 5)
        if mine not in self._heard():
            raise OutputBusyError(f"{self.place.name}: another run has begun to write to it just now")

        def beat() -> None:
            count = 0
            while not ended.wait(_BEAT_S):
                count += 1
                with contextlib.suppress(OSError):  # one sign that is missed says nothing
                    self._beat(mine, count)

        thread = threading.Thread(target=beat, name="swsl writer", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(OSError):
                self.place.files.delete_file(self._path(_WRITER))

    def _beat(self, who: str, count: int) -> None:
        with self.place.files.open_output_stream(self._path(_WRITER)) as file:
            file.write(f"{who}, {count}\n".encode())

    def _heard(self) -> str:
        try:
            with self.place.files.open_input_stream(self._path(_WRITER)) as file:
                return str(file.read().decode("utf-8", "replace")).strip()
        except FileNotFoundError:
            return ""

    def _wait_for_silence(self) -> None:
        first = heard = self._heard()
        if first:
            say(
                f"swsl: {self.place.name}: was being written by {first.split(',')[0]}; waiting for a sign of it"
            )
        for _ in range(6 if first else 0):
            time.sleep(_BEAT_S / 2)
            heard = self._heard()
            if heard != first:
                break
        if heard and heard != first:
            raise OutputBusyError(
                f"{self.place.name}: is being written by {first.split(',')[0]}; let it end, or give another -o"
            )
