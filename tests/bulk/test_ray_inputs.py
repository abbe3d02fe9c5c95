"""What runs on many machines read, where they write, and what fits on which cluster: without a cluster."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_cluster import add_to_tar

import swsl.bulk.ray_sources
from swsl.bulk.ray import Pool, pool_of
from swsl.bulk.ray_inputs import Inputs, find_inputs
from swsl.bulk.ray_parts import Parts
from swsl.bulk.ray_sources import Images, Unit, blocks, place_of
from swsl.bulk.rows import name_written, written_name
from swsl.bulk.run_record import ResumeError
from swsl.cli.main import main


@pytest.mark.parametrize("name", ["a b.jpg", "\udcff.jpg", "\\xff.jpg", "\0", "\\x5c", "ü\\\\xff"])
def test_a_name_comes_back(name: str) -> None:
    assert name_written(written_name(name)) == name


@pytest.mark.parametrize(
    ("nodes", "asked", "device", "pool"),
    [
        ([(16, 0)], None, "auto", Pool(1, 16, 0)),
        ([(16, 0)] * 3, 4, "auto", Pool(12, 4, 0)),
        ([(2, 0), (64, 0), (64, 0), (0, 0)], None, "cpu", Pool(2, 64, 0)),
        ([(16, 0), (64, 0)], None, "cpu", Pool(5, 16, 0)),
        ([(16, 0), (32, 4), (32, 8)], None, "auto", Pool(12, 4, 1)),
        ([(16, 0), (32, 4)], 16, "cuda", Pool(2, 16, 1)),
        ([(16, 0), (32, 4)], None, "cpu", Pool(3, 16, 0)),
    ],
)
def test_actors_for_the_nodes(
    nodes: list[tuple[int, int]], asked: int | None, device: str, pool: Pool
) -> None:
    """CPUs and GPUs of each: one actor a node, or a GPU; nodes that are smaller than most have none."""
    assert pool_of(nodes, asked, device) == pool


def test_a_cluster_that_is_too_small() -> None:
    with pytest.raises(
        ValueError, match="cpus_per_actor: .* room for an actor of 8 CPUs: the largest of 2 has 4"
    ):
        pool_of([(4, 0), (4, 0)], 8, "auto")
    with pytest.raises(ValueError, match="device: the cluster has no GPU for 'cuda'"):
        pool_of([(4, 0)], None, "cuda")
    with pytest.raises(ValueError, match="no node of the cluster has room for an actor of 1 CPUs"):
        pool_of([(0, 0)], None, "auto")


def rows(unit: Unit, done: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    found = [row for table in blocks(unit, done.__contains__) for row in table.to_pylist()]
    assert len({row["path"] for row in found}) == len(found)
    return {row["path"]: row["error"] or row["image"] for row in found}


def test_names_lead_to_places(tmp_path: Path) -> None:
    # Ray's processes have working directories of their own.
    assert (place_of("a?b=c.jpg").name, place_of("a?b=c.jpg").path) == (
        "a?b=c.jpg",
        f"{os.getcwd()}/a?b=c.jpg",
    )
    assert place_of("file:///a/b.jpg").path == place_of("/a/b.jpg").path == "/a/b.jpg"
    found = place_of("s3://bucket/photos/a ?.jpg?region=eu-west-1&scheme=http")
    assert (found.name, found.path) == ("s3://bucket/photos/a ?.jpg", "bucket/photos/a ?.jpg")
    assert found.files.region == "eu-west-1"
    with pytest.raises(ValueError, match="nothing://at/all: "):
        place_of("nothing://at/all")


def test_globs_folders_and_what_is_there_twice(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a.tar", "b.tar", "c.parquet", "below/d.jpg", "below/.e.jpg", "below/f.heic", "[x].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_inputs(
        [f"{tmp_path}/*.tar", str(tmp_path / "below"), f"{tmp_path}/[x].jpg", "https://host/x.tar"]
    )
    assert [shard.place.name for shard in found.shards] == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert [place.name for place in found.images] == [
        f"{tmp_path}/below/d.jpg",
        f"{tmp_path}/[x].jpg",
        "https://host/x.tar",
    ]
    assert "1 hidden files and folders" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"d\.jpg: is named twice; every image is to have one row"):
        find_inputs([str(tmp_path / "below"), f"{tmp_path}/**/d.jpg"])
    with pytest.raises(ValueError, match=r"\*\.png: no file matches"):
        find_inputs([f"{tmp_path}/*.png"])
    (tmp_path / "shards").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "shards" / "a.tar")
    with pytest.raises(ValueError, match=r"holds no image, but \.tar files; name them: '.*/shards/\*\.tar'"):
        find_inputs([str(tmp_path / "shards")])


def test_what_cannot_be_read_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swsl.bulk.ray_sources, "LARGEST", 100)
    monkeypatch.setattr(swsl.bulk.ray_sources, "BLOCK", 64)  # so that there are several
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "large.jpg").write_bytes(bytes(101))
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(bytes([number]) * 60)
    names = [*(f"{number}.jpg" for number in range(5)), "folder.jpg", "large.jpg", "none.jpg"]
    (unit,) = find_inputs([str(tmp_path / name) for name in names]).units({f"{tmp_path}/3.jpg"}, 100)
    found = rows(unit)
    assert [found.get(f"{tmp_path}/{number}.jpg") for number in range(5)] == [
        b"\0" * 60, b"\1" * 60, b"\2" * 60, None, b"\4" * 60,
    ]  # fmt: skip
    assert found[f"{tmp_path}/folder.jpg"].endswith("folder.jpg: is a directory; expected an image file")
    assert found[f"{tmp_path}/large.jpg"].endswith("larger than 0 MiB, expected a photograph")
    assert found[f"{tmp_path}/none.jpg"].endswith("none.jpg: cannot be opened: No such file or directory")


@pytest.mark.parametrize("cut", [700, 1024, 1536, 2048])
def test_a_shard_that_is_cut_off_says_so(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as shard:
        add_to_tar(shard, "1.jpg", b"one")
        add_to_tar(shard, "2.jpg", b"two")
    path.write_bytes(path.read_bytes()[:cut])
    (unit,) = find_inputs([str(path)]).units(set(), 1)
    found = rows(unit)
    error = found.pop(str(path))
    assert "cannot be read to its end" in error
    assert found == dict(
        list({f"{path}/1.jpg": b"one", f"{path}/2.jpg": b"two"}.items())[: (cut + 508) // 1024]
    )


def test_columns_of_parquet(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    nested = [{"bytes": b"three", "path": "x"}, None]
    pq.write_table(pa.table({"key": ["k", "l"], "image": [b"one", b"two"], "other": nested}), path)
    with pytest.raises(
        ValueError, match="expected one column of bytes, found image, other; name one by image_column"
    ):
        find_inputs([path])
    with pytest.raises(ValueError, match="has no column 'nothing'; its columns are key, image, other"):
        find_inputs([path], image_column="nothing")
    with pytest.raises(ValueError, match="column 'key' holds string; expected bytes"):
        find_inputs([path], image_column="key")
    (unit,) = find_inputs([path], image_column="image").units(set(), 1)
    assert rows(unit, {f"{path}/0"}) == {f"{path}/1": b"two"}
    (unit,) = find_inputs([path], image_column="other", id_column="key").units(set(), 1)
    assert rows(unit) == {"k": b"three", "l": "l: is null; expected the bytes of an image file"}
    pq.write_table(pa.table({"key": ["l"], "image": [b"one"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: l is there twice of column key"):
        find_inputs([f"{tmp_path}/*.parquet"], image_column="image", id_column="key")
    (tmp_path / "b.parquet").write_bytes(b"no Parquet")
    _, unit = find_inputs([f"{tmp_path}/*.parquet"], image_column="image").units(set(), 1)
    assert "cannot be read to its end" in rows(unit)[f"{tmp_path}/b.parquet"]


def part(folder: Path, number: int, paths: list[str]) -> Path:
    path = folder / f"dataset_{'0' * 32}_{number:06}-0.parquet"
    pq.write_table(pa.table({"path": paths, "error": pa.array([None] * len(paths), pa.string())}), path)
    return path


def test_parts_that_a_kill_has_left(tmp_path: Path) -> None:
    """One that Ray has not finished, whose name is pending; one that is cut off; one of a task that outlived its driver."""
    out = tmp_path / "out"
    Parts(str(out), {"model": "m"}).open(False)
    whole, unfinished, cut = (part(out, n, [f"{n}a", f"{n}b"]) for n in range(3))
    twice = part(out, 3, ["3a", "0b"])
    cut.write_bytes(cut.read_bytes()[:-9])
    (out / "_swsl.checkpoint").mkdir()
    for name in ("0" * 32 + "_000000", "0" * 32 + "_000001.pending"):
        (out / "_swsl.checkpoint" / f"dataset_{name}.parquet").write_bytes(b"")
    parts = Parts(str(out), {"model": "m"})
    parts.open(True)
    assert parts.settle()
    assert parts.done == {"0a", "0b"}
    assert whole.exists() and not (unfinished.exists() or cut.exists() or twice.exists())  # noqa: PT018
    assert not (out / "_swsl.checkpoint").exists()
    assert not parts.settle()


def test_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"holds thesis\.txt, which is no part of such a run"):
        Parts(str(out), {}).open(False)
    (out / "thesis.txt").unlink()
    stray = part(out, 0, ["a"])
    with pytest.raises(FileExistsError, match="is no part of such a run"):
        Parts(str(out), {}).open(True)
    stray.unlink()
    Parts(str(out), {"top_k": 5}).open(True)
    Parts(str(out), {"top_k": 4}).open(False)  # nothing would be lost
    part(out, 0, ["a"])
    with pytest.raises(ResumeError, match="holds rows of an earlier run; --resume goes on with it"):
        Parts(str(out), {"top_k": 4}).open(False)
    with pytest.raises(ResumeError, match="was made with top_k 4 and not 5"):
        Parts(str(out), {"top_k": 5}).open(True)
    with Parts(str(out), {}).only_writer(), pytest.raises(RuntimeError, match="is being written by process"), Parts(str(out), {}).only_writer():  # fmt: skip
        pass


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("classify a.jpg --cpus-per-actor 2", "--cpus-per-actor: needs --ray"),
        ("embed a.jpg -o o.npy --id-column x", "--id-column: needs --ray"),
        ("classify a.jpg --ray auto", "-o: with --ray, expected the name of a folder, got None"),
        ("embed a.jpg --ray auto -o a.parquet", "-o: with --ray, expected the name of a folder"),
        ("classify a.jpg --ray auto -o out --format json", "--format: not with --ray"),
        ("classify a.jpg --ray auto -o out --cores 2", "--cores: not with --ray; give --cpus-per-actor"),
        ("classify a.jpg --ray auto -o out --threads 2", "--threads: not with --ray"),
        ("classify a.jpg --ray auto -o out --workers 2", "--workers: not with --ray"),
        ("classify - --ray auto -o out", "-: not with --ray"),
        ("classify a.jpg --ray auto -o out --dtype auto", "--dtype: not auto with --ray"),
        (
            "classify a.jpg --ray auto -o out --device cuda:1",
            "--device: with --ray, expected cpu, cuda or auto",
        ),
        ("classify a.jpg --ray ray://host:1 -o out", "--ray: Ray's client is not supported"),
    ],
)
def test_options_that_do_not_go_together(arguments: str, says: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments.split())
    assert error.value.code == 2
    assert says in capsys.readouterr().err


def test_units_hold_what_is_left() -> None:
    places = [place_of(f"{number}.jpg") for number in range(10)]
    units = Inputs(places).units({"3.jpg"}, 4)
    assert [len(unit.places) for unit in units if isinstance(unit, Images)] == [4, 4, 1]


def test_members_of_one_name_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"some bytes")
    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        for name in ("a.jpg", "./a.jpg", "a.jpg"):
            shard.add(tmp_path / "a.jpg", name)
    name = f"{tmp_path}/x.tar"
    (unit,) = find_inputs([name]).units(set(), 1)
    assert [path for path, *_ in unit.rows()] == [f"{name}/a.jpg", f"{name}/a.jpg#2", f"{name}/a.jpg#3"]
