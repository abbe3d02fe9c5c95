"""What a user names for a run on many machines, as the units that Ray Data's tasks read: images of a folder or a glob, tar shards of
images (WebDataset's), and Parquet files with a column of bytes; on any file system that pyarrow knows.

Each row is ``path`` (its identity, as `written_name` writes it), ``image`` (the bytes of a file) and ``error`` (why there are none). A
file that cannot be read, or not to its end, is a row too: it costs no other.
"""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..image import ImageError, fetch, is_url, open_regular
from .rows import written_error, written_name
from .sources import IMAGE_SUFFIXES, is_hidden

LARGEST = 256 << 20
"""Bytes of an image file at most, as of one that a URL leads to."""

BLOCK = 32 << 20
"""Bytes of images that go to an actor at once, about."""

_READ_AT_ONCE = 32
_REMOTE = re.compile(
    r"(?P<store>[a-z][a-z0-9+.-]+://[^/?]*)(?P<path>/.*?)?(?P<options>\?\w+=[^/]*)?", re.DOTALL
)


@dataclass(frozen=True)
class Place:
    """A file by its name, ``s3://bucket/key`` say, on its file system."""

    name: str
    files: Any = field(compare=False)
    path: str = field(compare=False)

    def within(self, path: str) -> Place:
        """Another of the same file system, at or below this one."""
        return Place(self.name + path[len(self.path) :], self.files, path)


def place_of(name: str) -> Place:
    """Where a name leads: a path of this machine, or a URI that `pyarrow.fs.FileSystem.from_uri` takes, with its options behind
    ``?``. What stands between may hold any character.

    Raises:
        ValueError: an unknown kind of URI.
    """
    from pyarrow import fs

    local = name.removeprefix("file://")
    remote = _REMOTE.fullmatch(name)
    if remote is None or is_url(name) or local != name:
        return Place(local, fs.LocalFileSystem(), local if is_url(name) else absolute(local))
    try:
        files, root = fs.FileSystem.from_uri(remote["store"] + (remote["options"] or ""))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    path = (remote["path"] or "").rstrip("/")
    return Place(remote["store"] + path, files, (root.rstrip("/") + path).removeprefix("//"))


def absolute(path: str) -> str:
    """Ray's processes have working directories of their own."""
    return os.path.join(os.getcwd(), path)


@dataclass(frozen=True)
class Images:
    """Image files that one task reads."""

    places: Sequence[Place]

    def rows(self) -> Iterator[Row]:
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            for some in chunks(self.places, 2 * _READ_AT_ONCE):
                yield from pool.map(_read, some)


class _Member(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.ended = True
            raise


@dataclass(frozen=True)
class Shard:
    """A tar file of images, named ``shard.tar/photo.jpg``; of two members of one name the second is ``photo.jpg#2``."""

    place: Place

    def rows(self) -> Iterator[Row]:
        name, seen = self.place.name, Counter[str]()
        try:
            with (
                self.place.files.open_input_stream(self.place.path, compression=None) as stream,
                tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as shard,
            ):
                for member in shard:
                    if not member.isfile() or not is_image(member.name):
                        continue
                    within = member.name.removeprefix("./")
                    seen[within] += 1
                    again = f"#{seen[within]}" if seen[within] > 1 else ""
                    called = f"{name}/{within}{again}"
                    if member.size > LARGEST:
                        yield _too_large(called)
                        continue
                    content = shard.extractfile(member)
                    data = content.read() if content else b""
                    if len(data) < member.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield called, data, None
                if not getattr(shard, "ended", False):  # what tarfile takes for an end as well
                    raise tarfile.ReadError("it ends without tar's end mark")
        except (OSError, EOFError, tarfile.TarError, ValueError) as error:
            what = "cannot be read to its end" if seen else "cannot be read as a tar file"
            yield name, None, f"{name}: {what}: {error}"
        else:
            if not seen:
                yield name, None, f"{name}: holds no image of a format that is read"


@dataclass(frozen=True)
class Table:
    """A Parquet file. Its rows are named by a column, or ``table.parquet/0``, ``table.parquet/1`` and so on."""

    place: Place
    image: str
    id: str | None

    def rows(self) -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        name, number = self.place.name, 0
        try:
            with self.place.files.open_input_file(self.place.path) as file:
                columns = [self.image, *([self.id] if self.id else [])]
                for batch in pq.ParquetFile(file).iter_batches(64, columns=columns):
                    images = batch.column(0)
                    if pa.types.is_struct(images.type):
                        images = pc.struct_field(images, "bytes")
                    ids = batch.column(1).cast(pa.string()).to_pylist() if self.id else [None] * len(batch)
                    for called, image in zip(ids, images, strict=True):
                        called = f"{name}/{number}" if called is None else called
                        data, number = image.as_py(), number + 1
                        empty = f"{called}: is null; expected the bytes of an image file"
                        yield called, data, empty if data is None else None
        except (OSError, pa.ArrowException) as error:
            yield name, None, f"{name}: cannot be read to its end: {error}"


Unit = Images | Shard | Table
Row = tuple[str, "bytes | None", "str | None"]


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _too_large(name: str) -> Row:
    return name, None, f"{name}: larger than {LARGEST >> 20} MiB, expected a photograph"


def _read(place: Place) -> Row:
    """An image file's bytes; the errors of one on this machine are those of a runner that opens it itself."""
    from pyarrow import fs

    try:
        if is_url(place.name):
            return place.name, fetch(place.name), None
        if isinstance(place.files, fs.LocalFileSystem):
            with open_regular(place.path) as file:
                data = file.read(LARGEST + 1)
        else:
            with place.files.open_input_file(place.path) as file:
                data = file.read(LARGEST + 1)
        return _too_large(place.name) if len(data) > LARGEST else (place.name, data, None)
    except ImageError as error:
        return place.name, None, str(error).replace(place.path, place.name, 1)
    except (OSError, ValueError) as error:
        return place.name, None, f"{place.name}: cannot be read: {error}"


def blocks(unit: Unit, skip: Callable[[str], bool]) -> Iterator[Any]:
    """A unit's rows as pyarrow.Tables of about `BLOCK` bytes, but for those whose identity is to be skipped."""
    import pyarrow as pa

    schema = pa.schema([("path", pa.string()), ("image", pa.binary()), ("error", pa.string())])
    waiting: list[Row] = []
    size = 0

    def table() -> Any:
        return pa.table([list(column) for column in zip(*waiting, strict=True)], schema=schema)

    for name, data, error in unit.rows():
        written = written_name(name)
        if skip(written):
            continue
        waiting.append((written, data, written_error(error) if error else None))
        size += len(data or b"")
        if size >= BLOCK:
            yield table()
            waiting, size = [], 0
    if waiting:
        yield table()


def is_image(path: str) -> bool:
    parts = path.removeprefix("./").split("/")
    return posixpath.splitext(path)[1].lower() in IMAGE_SUFFIXES and not any(map(is_hidden, parts))
