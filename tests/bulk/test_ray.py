"""Runs on many machines, on a cluster of this one: every row is the single machine's."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_cluster import (
    MARKS,
    add_to_tar,
    cluster_of,
    make_folder,
    photograph,
    rows_of,
    same_rows,
    schema_of,
    swsl_process,
)

import swsl
from swsl.bulk import ray as swsl_ray
from swsl.bulk.ray import Answers, Options, Shipped
from swsl.bulk.ray_inputs import find_inputs
from swsl.bulk.ray_job import check_reach
from swsl.bulk.ray_parts import Parts
from swsl.cli.main import main

pytestmark = MARKS
ALL = "predictions,embedding,logits"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with cluster_of(1, 1) as made:
        yield made


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos") / "photos", 90)


@pytest.fixture
def bucket(cluster: Any) -> Any:
    from pyarrow import fs

    files, _ = fs.FileSystem.from_uri("s3://swsl?allow_bucket_creation=true")
    files.create_dir("swsl")
    return files


def test_a_folder_is_the_single_machines(
    cluster: Any, photos: Path, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An unknown file, one without bytes, and one that is not there among them; then more images. The names are relative to a folder
    in which no process of the cluster was started."""
    monkeypatch.chdir(photos.parent)
    odd = os.fsencode(photos) + b"/\xff.jpg"
    Path(os.fsdecode(odd)).write_bytes(photograph(1000))
    images = [photos.name, "missing.jpg"]
    options = [*tiny, "--outputs", ALL, "--top-k", "3"]
    assert main(["classify", *images, *options, "-o", str(tmp_path / "one.parquet")]) == 1
    out = Path("out")
    assert main(["classify", *images, *options, "--ray", "auto", "-o", str(out)]) == 1
    assert f"swsl: 94 rows are in {out}, 3 of them with an error\n" in capsys.readouterr().err
    same_rows(rows_of(out), rows_of(tmp_path / "one.parquet"))
    assert schema_of(out).equals(pq.read_schema(tmp_path / "one.parquet"), check_metadata=True)
    assert {path.name for path in out.iterdir() if path.suffix != ".parquet"} == {"_swsl.run.json"}

    os.unlink(odd)
    parts = sorted(out.glob("*.parquet"))
    assert main(["classify", photos.name, *options, "--ray", "auto", "-o", str(out)]) == 1
    assert "holds rows of an earlier run; --resume goes on with it" in capsys.readouterr().err
    assert (
        main(["classify", *images, *options, "--top-k", "4", "--ray", "auto", "-o", str(out), "--resume"])
        == 1
    )
    assert "was made with --top-k 3 and not 4" in capsys.readouterr().err
    assert sorted(out.glob("*.parquet")) == parts

    before = {row["path"] for row in rows_of(out)}
    more = make_folder(tmp_path / "more", 5)
    assert main(["classify", *images, str(more), *options, "--ray", "auto", "-o", str(out), "--resume"]) == 1
    assert set(parts) < set(out.glob("*.parquet"))
    paths = [row["path"] for row in rows_of(out)]
    assert len(paths) == len(set(paths)) == len(before) + 7


def test_embeddings_of_shards(
    cluster: Any, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """WebDataset's: a shard that is cut off keeps the rows before the cut, and none costs another."""
    for name, numbers in (("a", range(40)), ("b", range(40, 80))):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as shard:
            for number in numbers:
                add_to_tar(shard, f"./{number}.jpg", photograph(number))
                add_to_tar(shard, f"./{number}.cls", b"7")
            add_to_tar(shard, "./0.jpg", photograph(0))
            add_to_tar(shard, "._0.jpg", b"of a Mac")
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.tar").write_bytes(b"no tar file, however long" * 100)
    arguments = ["embed", f"{tmp_path}/*.tar", *tiny, "--ray", "auto", "-o", str(tmp_path / "out")]
    assert main(arguments) == 1
    rows = {row["path"]: row for row in rows_of(tmp_path / "out")}
    assert {row.pop("path") for row in rows_of(tmp_path / "out")} == set(rows)
    errors = {path: row["error"] for path, row in rows.items() if row["error"]}
    assert set(errors) == {f"{tmp_path}/b.tar", f"{tmp_path}/c.tar"}
    assert "cannot be read to its end" in errors[f"{tmp_path}/b.tar"]
    assert "cannot be read as a tar file" in errors[f"{tmp_path}/c.tar"]
    assert f"{tmp_path}/a.tar/0.jpg#2" in rows
    with swsl.Runner(tiny[1]) as runner:
        expected = runner.embed([photograph(number) for number in range(40)])
    for number in range(40):
        found = rows[f"{tmp_path}/a.tar/{number}.jpg"]["embedding"]
        assert found == pytest.approx(expected[number].tolist(), rel=1e-4, abs=1e-5)

    (tmp_path / "b.tar").write_bytes(whole)  # it has come whole: what is missing is made, what there is stays
    assert main([*arguments, "--resume"]) == 1
    paths = [row["path"] for row in rows_of(tmp_path / "out")]
    assert len(paths) == len(set(paths)) == 2 * 41 + 2


def test_parquet_in_an_object_store(
    cluster: Any, bucket: Any, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By Arrow's own client, against a server of this process."""
    files = {}
    for number in range(60):
        files[f"s3://swsl/photos/{number % 4}/{number} ü?.jpg"] = photograph(number)
    files["s3://swsl/photos/bad.jpg"] = b"no image"
    files["s3://swsl/photos/.hidden.jpg"] = b""
    for name, data in files.items():
        with bucket.open_output_stream(name.removeprefix("s3://")) as file:
            file.write(data)
    assert (
        main(
            [
                "classify",
                "s3://swsl/photos",
                "s3://swsl/none.jpg",
                *tiny,
                "--ray",
                "auto",
                "-o",
                "s3://swsl/out",
            ]
        )
        == 1
    )
    rows = {row["path"]: row for row in rows_of("swsl/out", bucket)}
    assert set(rows) == set(files) - {"s3://swsl/photos/.hidden.jpg"} | {"s3://swsl/none.jpg"}
    assert {path for path, row in rows.items() if row["error"]} == {
        "s3://swsl/photos/bad.jpg",
        "s3://swsl/none.jpg",
    }
    assert "cannot be read" in rows["s3://swsl/none.jpg"]["error"]
    with swsl.Runner(tiny[1]) as runner:
        for name in list(files)[:5]:
            ((best, *_),) = runner.classify([files[name]])
            assert rows[name]["label"][0] == best.label

    images = [*(photograph(number) for number in range(30)), b"no image", None]
    table = pa.table({"key": [f"photo {number}" for number in range(32)], "jpeg": images})
    pq.write_table(table, "swsl/table.parquet", filesystem=bucket)
    arguments = ["classify", "s3://swsl/*.parquet", *tiny, "--ray", "auto", "--id-column", "key"]
    assert main([*arguments, "-o", "s3://swsl/keyed"]) == 1
    keyed = {row["path"]: row for row in rows_of("swsl/keyed", bucket)}
    assert set(keyed) == set(table["key"].to_pylist())
    assert {path for path, row in keyed.items() if row["error"]} == {"photo 30", "photo 31"}
    assert main([*arguments, "-o", "s3://swsl/keyed", "--resume"]) == 1
    assert len(rows_of("swsl/keyed", bucket)) == 32
    assert "swsl: 32 rows are in s3://swsl/keyed, 2 of them with an error\n" in capsys.readouterr().err


def test_any_dataset(cluster: Any, tiny: list[str], tmp_path: Path) -> None:
    """Bytes as Hugging Face has them too. The file of the model is needed by this process alone, and only at first."""
    import ray.data

    network = swsl.ResNeXt((1, 1, 1, 1), groups=1, width_per_group=4, num_classes=7).eval()
    model = tmp_path / "model.pt"
    swsl.export_model(network, model, spec=swsl.PreprocessSpec(input_size=(64, 64)), labels="ABCDEFG")
    images = [photograph(number) for number in range(20)] + [b"no image", None]
    with swsl.Runner(model) as runner:
        expected = runner.run(images[:20], ["predictions", "embedding"], top_k=2)
    # A column of the user's own may be called error.
    plain = pa.table({"key": pa.array(range(22)), "jpeg": pa.array(images), "error": ["of focus"] * 22})
    nested = pa.table({"key": plain["key"], "jpeg": [{"bytes": data, "path": ""} for data in images]})
    for name, table in (("plain", plain), ("nested", nested)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        dataset = ray.data.read_parquet(str(tmp_path / f"{name}.parquet"))  # whose tasks want a CPU
        found = swsl_ray.classify(
            dataset, model=model, image="jpeg", id="key", top_k=2, outputs=["embedding", "predictions"]
        )
        features = swsl_ray.embed(dataset, model=model, image="jpeg", id="key", cpus_per_actor=1)
        if table is nested:
            model.unlink()
        rows = {row["path"]: row for row in found.take_all()}
        assert set(rows) == {str(number) for number in range(22)}
        for number, result in enumerate(expected):
            row = rows[str(number)]
            assert row["label"] == [prediction.label for prediction in result.predictions]
            assert row["embedding"] == pytest.approx(result.embedding.tolist(), rel=1e-4, abs=1e-5)
        assert rows["20"]["error"] == "20: not an image in a format that Pillow reads"
        assert rows["21"]["error"] == "21: is null; expected the bytes of an image file"
        assert {row["path"] for row in features.take_all()} == set(rows)
    with pytest.raises(
        ValueError, match=r"cpus_per_actor: no node of the cluster has room for an actor of 64 CPUs"
    ):
        swsl_ray.embed(dataset, model=tiny[1], image="jpeg", id="key", cpus_per_actor=64)


def test_a_nodes_copy_of_the_model_is_checked(cluster: Any, tiny: list[str]) -> None:
    shipped = Shipped(tiny[1], Options())
    shipped.send()
    copy = shipped.local_file()
    assert copy.read_bytes() == Path(tiny[1]).read_bytes()
    copy.write_bytes(b"cut off")
    assert shipped.local_file().read_bytes() == Path(tiny[1]).read_bytes()


@pytest.mark.parametrize(
    ("address", "model", "says"),
    [
        ("127.0.0.1:9", None, "--ray: no cluster at 127.0.0.1:9: "),
        ("local", "missing.pt", "missing.pt: no such file"),
    ],
)
def test_what_needs_no_cluster_to_be_refused(
    address: str, model: str | None, says: str, photos: Path, tiny: list[str], tmp_path: Path
) -> None:
    """At once: Ray takes ten seconds to start, and two minutes to give a cluster up."""
    out = tmp_path / "out"
    process = swsl_process(
        "classify", str(photos), "--runner", model or tiny[1], "--ray", address, "-o", str(out)
    )
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert says in text
    assert "swsl: Ray on" not in text


def test_a_node_without_the_compiled_runner(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Shipped(tiny[1], Options())
    monkeypatch.setattr("swsl.bulk.ray.build_info", lambda: {"compiled": False, "reason": "it is not built"})
    with pytest.raises(
        RuntimeError, match=r"this node computes by PyTorch, .* compiled runner: it is not built"
    ):
        Answers(shipped, "cpu", 1, "image", "path", None)


def test_a_node_that_has_left_is_not_asked(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    parts = Parts(str(tmp_path / "out"), {})
    parts.open(False)
    gone = {**ray.nodes()[0], "NodeID": "e" * 56}
    monkeypatch.setattr("ray.nodes", lambda: [gone])
    check_reach(find_inputs([str(tmp_path)]), parts)


def test_files_that_a_node_does_not_see(
    cluster: Any, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nodes share no disk. This process is made to see more than there is, the nodes cannot."""
    parts = Parts(str(tmp_path / "out"), {})
    parts.open(False)
    monkeypatch.setattr("swsl.bulk.ray_job.os.path.exists", lambda _: True)
    with pytest.raises(ValueError, match=r"there\.jpg: is a file of this machine that node .* does not see"):
        check_reach(find_inputs([str(tmp_path / "there.jpg")]), parts)


def test_two_runs_into_one_folder_of_an_object_store(
    cluster: Any, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swsl.bulk.ray_parts._BEAT_S", 0.3)
    first, second = (Parts("s3://swsl/busy", {}) for _ in range(2))
    with (
        first.only_writer(),
        pytest.raises(RuntimeError, match="is being written by process"),
        second.only_writer(),
    ):
        pass
    with bucket.open_output_stream("swsl/busy/_swsl.writer") as file:
        file.write(b"process 1 on a node that is gone, 7\n")
    with second.only_writer():
        second.open(False)
