"""What a user names for a run on many machines, found: folders and globs of images on any file system, shards, Parquet files."""

from __future__ import annotations

import fnmatch
import glob
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ..image import is_url
from .ray_sources import Images, Place, Shard, Table, Unit, absolute, chunks, place_of
from .rows import written_name
from .sources import IMAGE_SUFFIXES, UNREAD_SUFFIXES, Skipped, find_images, is_hidden

_SHARDS = (".tar", ".tar.gz", ".tgz")


@dataclass
class Inputs:
    """Everything that the user has named, found on this machine: names alone, no bytes."""

    images: list[Place] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def about(self, done: set[str]) -> int:
        """How many images are left, where that can be known without reading."""
        return max(len(self.images) - len(done), 0) + 1000 * (len(self.shards) + len(self.tables))

    def units(self, done: set[str], at_once: int) -> list[Unit]:
        """What is left to read, so many images at once. Which rows of shards and tables are done is found out in reading."""
        left = [place for place in self.images if written_name(place.name) not in done]
        return [*(Images(some) for some in chunks(left, at_once)), *self.shards, *self.tables]

    def without_row(self, done: set[str]) -> list[str]:
        """The images that are not done. How many a shard or table holds nobody knows before it is read."""
        return [name for place in self.images if (name := written_name(place.name)) not in done]


def find_inputs(
    arguments: Iterable[str], *, image_column: str | None = None, id_column: str | None = None
) -> Inputs:
    """The images, shards and Parquet files among what the user has named: files by their suffix, folders for the images in them and in
    their folders, and globs, in which ``**`` is any number of folders. One line counts what was skipped.

    Args:
        arguments: names of this machine's files, and URIs.
        image_column: of Parquet files; by default the only one of bytes.
        id_column: of Parquet files, whose values name the images: none twice and none null in all files together. By default a
            row's number does.

    Raises:
        ValueError: a glob that nothing matches, a folder of shards alone, an input or identity that is there twice, no such column.
        OSError: a folder that cannot be listed.
    """
    found, skipped = Inputs(), Skipped()
    for argument in arguments:
        for place in _expand(argument, skipped):
            if place.name.lower().endswith(_SHARDS) and not is_url(place.name):
                found.shards.append(Shard(place))
            elif place.name.lower().endswith(".parquet") and not is_url(place.name):
                found.tables.append(Table(place, image_column or "", id_column))
            else:
                found.images.append(place)
    skipped.report()
    if (image_column or id_column) and not found.tables:
        raise ValueError("image_column and id_column: are of .parquet files, and there is none")
    places = [*found.images, *(each.place for each in found.shards), *(each.place for each in found.tables)]
    twice = [name for name, count in Counter(place.name for place in places).items() if count > 1]
    if twice:
        raise ValueError(
            f"{twice[0]}: is named twice{f', and {len(twice) - 1:,} others' * (len(twice) > 1)}; every image is to have one row"
        )
    found.tables = _with_columns(found.tables, {written_name(place.name) for place in places})
    return found


def _expand(argument: str, skipped: Skipped) -> Iterator[Place]:
    from pyarrow import fs

    place = place_of(argument)
    if isinstance(place.files, fs.LocalFileSystem):
        if glob.has_magic(place.path) and not os.path.lexists(place.path) and not is_url(place.name):
            names = [name for name in glob.glob(place.name, recursive=True) if not os.path.isdir(name)]
            if not names:
                raise ValueError(f"{argument}: no file matches")
            names.sort(key=os.fsencode)
        elif os.path.isdir(place.path):
            names = list(find_images([place.name]))
            _refuse_shards_alone(argument, names == [place.name], os.listdir(place.path))
        else:
            yield place
            return
        yield from (Place(name, place.files, absolute(name)) for name in names)
        return
    if glob.has_magic(place.path):
        parts = place.path.split("/")
        at = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        base, pattern = "/".join(parts[:at]), parts[at:]
        deep = len(pattern) > 1 or "**" in pattern
        names = [
            path for path in _listed(place.within(base), deep) if _matches(path.split("/")[at:], pattern)
        ]
        if not names:
            raise ValueError(f"{argument}: no file matches")
        yield from map(place.within(base).within, names)
    elif place.files.get_file_info(place.path).type == fs.FileType.Directory:
        paths = _listed(place, True)
        images = list(_images_among(paths, place, skipped))
        _refuse_shards_alone(argument, not images, paths)
        yield from map(place.within, images or [place.path])
    else:
        yield place


def _listed(folder: Place, deep: bool) -> list[str]:
    from pyarrow import fs

    found = folder.files.get_file_info(fs.FileSelector(folder.path, recursive=deep, allow_not_found=True))
    return sorted(info.path for info in found if info.type == fs.FileType.File)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts)))
    hidden = parts[0].startswith(".") and not pattern[0].startswith(".")
    return not hidden and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _images_among(paths: Iterable[str], folder: Place, skipped: Skipped) -> Iterator[str]:
    """By the rules of `walk_images`."""
    for path in paths:
        suffix = posixpath.splitext(path)[1].lower()
        name = folder.within(path).name
        if suffix not in IMAGE_SUFFIXES | UNREAD_SUFFIXES:
            continue
        if any(map(is_hidden, path[len(folder.path) :].split("/"))):
            skipped.add("hidden files and folders", name)
        elif suffix in UNREAD_SUFFIXES:
            skipped.add(f"{suffix} images", name)
        else:
            yield path


def _refuse_shards_alone(folder: str, empty: bool, names: Iterable[str]) -> None:
    for name in names if empty else ():
        for suffix in (*_SHARDS, ".parquet"):
            if name.lower().endswith(suffix):
                raise ValueError(
                    f"{folder}: holds no image, but {suffix} files; name them: '{folder.rstrip('/')}/*{suffix}'"
                )


def _with_columns(tables: Sequence[Table], seen: set[str]) -> list[Table]:
    """The tables with the columns that they have, each identity in them alone, and none of those that were ``seen``."""
    found = []
    with ThreadPoolExecutor(16) as pool:
        for table, (column, ids) in zip(tables, pool.map(_looked_at, tables), strict=True):
            for identity in ids:
                if identity is None or identity in seen:
                    what = "is there twice" if identity else "is null in a row"
                    raise ValueError(
                        f"{table.place.name}: {identity or ''}{' ' * bool(identity)}{what} of column {table.id}; every image is to have "
                        "a name of its own"
                    )
                seen.add(identity)
            found.append(Table(table.place, column, table.id))
    return found


def _looked_at(table: Table) -> tuple[str, list[str | None]]:
    """A table's column of images, and what names its rows. One that cannot be read becomes a row with an error later."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = table.place.name
    try:
        with table.place.files.open_input_file(table.place.path) as opened:
            file = pq.ParquetFile(opened)
            schema = file.schema_arrow
            for column in filter(None, (table.image, table.id)):
                if column not in schema.names:
                    raise ValueError(
                        f"{name}: has no column {column!r}; its columns are {', '.join(schema.names)}"
                    )
            able = [each.name for each in schema if _holds_bytes(each.type)]
            if table.image and table.image not in able:
                raise ValueError(
                    f"{name}: column {table.image!r} holds {schema.field(table.image).type}; expected bytes"
                )
            if not table.image and len(able) != 1:
                raise ValueError(
                    f"{name}: expected one column of bytes, found {', '.join(able) or 'none'}; name one by image_column"
                )
            ids = file.read([table.id]).column(0).cast(pa.string()).to_pylist() if table.id else []
    except (OSError, pa.ArrowInvalid):
        return table.image or "image", []
    return table.image or able[0], ids


def _holds_bytes(kind: object) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:  # type: ignore[attr-defined]
        kind = kind.field("bytes").type  # type: ignore[attr-defined]
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
