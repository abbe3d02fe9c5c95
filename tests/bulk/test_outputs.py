"""Outputs of long runs: what is in them, and that an interrupted run is continued without losing or repeating a row."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import subprocess_environment
from output_runs import (
    FEATURES,
    INPUTS,
    OUTPUTS,
    Killed,
    contents,
    run,
)
from PIL import Image

import swsl
from swsl.bulk.run_record import ResumeError
from swsl.cli.main import main
from swsl.deploy.runner import build_info


@pytest.fixture
def whole(tmp_path: Path) -> Callable[[str], dict[str, bytes]]:
    def uninterrupted(name: str) -> dict[str, bytes]:
        folder = tmp_path / "whole"
        folder.mkdir()
        run(name, folder)
        return contents(folder)

    return uninterrupted


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.npy"])
@pytest.mark.parametrize("seed", range(4))
def test_cut_anywhere_and_continued(name: str, seed: int, tmp_path: Path, whole: Callable) -> None:
    """A killed run leaves its files cut anywhere: in a row, in a character, or one file further than the other."""
    choose = random.Random(seed)
    expected = whole(name)
    for case in range(12):
        folder = tmp_path / f"case{case}"
        folder.mkdir()
        with pytest.raises(Killed):
            run(name, folder, stop_after=choose.randrange(1, len(INPUTS) - 4))
        for partial in folder.glob("*.partial"):  # the record is written at once, and with no rows not needed
            data = partial.read_bytes()
            if choose.random() < 0.7:
                partial.write_bytes(data[: choose.randrange(len(data) + 1)])
        run(name, folder, resume=True)
        assert contents(folder) == expected


@pytest.mark.parametrize("name", OUTPUTS)
def test_interrupted_twice_and_continued(name: str, tmp_path: Path, whole: Callable) -> None:
    folder = tmp_path / "interrupted"
    folder.mkdir()
    for stop_after in (8, 12):
        with pytest.raises(Killed):
            run(name, folder, resume=True, stop_after=stop_after)
        assert not (folder / name).exists()
    run(name, folder, resume=True)
    expected = whole(name)
    assert contents(folder).keys() == expected.keys()
    if name.endswith(".parquet"):  # the same rows, in other row groups
        assert pq.read_table(folder / name).equals(pq.read_table(tmp_path / "whole" / name))
    else:
        assert contents(folder) == expected


def test_an_interrupted_run_is_readable(tmp_path: Path) -> None:
    for name in OUTPUTS:
        with pytest.raises(Killed):
            run(name, tmp_path, stop_after=8)
    with open(tmp_path / "out.csv.partial", newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 9
    assert len((tmp_path / "out.jsonl.partial").read_text("utf-8").splitlines()) == 8
    assert np.load(tmp_path / "out.npy.partial").shape == (8, FEATURES)
    for name in (name for name in OUTPUTS if name.endswith(".parquet")):
        assert pq.read_table(tmp_path / f"{name}.partial").num_rows == 8


def test_without_resume_a_run_starts_anew(tmp_path: Path, whole: Callable) -> None:
    for name in OUTPUTS:
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        with pytest.raises(Killed):
            run(name, folder, stop_after=20)
        with OUTPUTS[name](folder / name, False) as output:
            assert output.rows == 0
            assert list(output.remaining(INPUTS)) == INPUTS


def test_contents(tmp_path: Path) -> None:
    for name in OUTPUTS:
        run(name, tmp_path)
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == INPUTS
    assert rows[1] == {
        "path": INPUTS[1], "error": "", "label_1": "class, 1", "index_1": "1", "probability_1": "0.75",
        "label_2": "other", "index_2": "7", "probability_2": "0.333333333",
    }  # fmt: skip
    assert rows[3]["error"] == f"{INPUTS[3]}: truncated"
    assert not any(value for key, value in rows[3].items() if key not in ("path", "error"))
    objects = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert objects[3] == {"path": INPUTS[3], "error": f"{INPUTS[3]}: truncated"}
    assert objects[1]["predictions"][0] == {"label": "class, 1", "index": 1, "probability": 0.75}
    array = np.load(tmp_path / "out.npy")
    assert (array.dtype, array.shape) == (np.float32, (40, FEATURES))
    assert np.isnan(array[3]).all()
    assert array[4].tolist() == pytest.approx([4, 4 / 3, -1.5])
    with open(tmp_path / "out.npy.paths.csv", newline="", encoding="utf-8") as file:
        paths = list(csv.DictReader(file))
    assert [row["path"] for row in paths] == INPUTS
    assert [bool(row["error"]) for row in paths] == np.isnan(array[:, 0]).tolist()
    table = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert (table[1]["label"], table[1]["index"]) == (["class, 1", "other"], [1, 7])
    assert table[3]["error"]
    assert pq.read_table(tmp_path / "embeddings.parquet").to_pylist()[4]["embedding"] == pytest.approx(
        [4, 4 / 3, -1.5]
    )
    everything = pq.read_table(tmp_path / "everything.parquet")
    assert everything.column_names == [
        "path", "error", "label", "index", "probability", "embedding", "logits",
    ]  # fmt: skip
    assert everything.select(["path", "error", "label", "index", "probability"]).to_pylist() == table
    rows = everything.to_pylist()
    assert [row["embedding"] is None for row in rows] == [bool(row["error"]) for row in rows]
    assert rows[4]["logits"] == pytest.approx([5, 7 / 3])
    assert rows[3]["logits"] is None


@pytest.mark.parametrize("name", OUTPUTS)
def test_other_inputs_are_noticed(name: str, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(name, tmp_path, stop_after=8)
    changed = [*INPUTS[:5], "another.jpg", *INPUTS[5:]]
    with (
        pytest.raises(
            ResumeError, match=r"row 6 is of folder/5.*input 6 is now another.jpg; give the same inputs"
        ),
        OUTPUTS[name](tmp_path / name, True) as output,
    ):
        list(output.remaining(changed))
    with (
        pytest.raises(ResumeError, match=r"input 4 is now missing"),
        OUTPUTS[name](tmp_path / name, True) as output,
    ):
        list(output.remaining(INPUTS[:3]))
    run(name, tmp_path, resume=True)  # neither attempt has done harm


def test_commands(tmp_path: Path, engine: list[str], photo: Path, capsys: pytest.CaptureFixture) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(5):
        Image.open(photo).rotate(70 * number).save(images / f"{number}.jpg")
    (images / "2b.jpg").write_bytes(b"no image")
    for arguments in (
        ["embed", str(images), "-o", str(tmp_path / "out.npy")],
        ["embed", str(images), "-o", str(tmp_path / "embeddings.parquet")],
        ["classify", str(images), "-o", str(tmp_path / "out.csv"), "--top-k", "2"],
        ["classify", str(images), "-o", str(tmp_path / "predictions.parquet")],
        [
            "classify",
            str(images),
            "-o",
            str(tmp_path / "all.parquet"),
            "--outputs",
            "logits,embedding,predictions",
        ],
    ):
        assert main([*arguments, "--batch-size", "2", *engine]) == 1  # one of them is no image
        assert "2b.jpg" in capsys.readouterr().err
        assert main([*arguments, "--resume", *engine]) == 0
        assert "is complete" in capsys.readouterr().err
    embeddings = np.load(tmp_path / "out.npy")
    assert embeddings.shape == (6, 2048)
    assert np.isnan(embeddings).any(axis=1).tolist() == [False, False, False, True, False, False]
    column = pq.read_table(tmp_path / "embeddings.parquet")["embedding"].to_pylist()
    assert np.array_equal(np.array(column[4], np.float32), embeddings[4])
    names = [path.name for path in sorted(images.iterdir())]
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == names
    everything = pq.read_table(tmp_path / "all.parquet")
    assert json.loads(everything.schema.metadata[b"swsl.run"])["outputs"] == "predictions,embedding,logits"
    assert everything["embedding"].to_pylist() == column
    for row in everything.to_pylist():
        if not row["error"]:
            assert row["index"] == np.argsort(row["logits"])[::-1][:5].tolist()
    table = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert everything.select(["label", "probability"]).to_pylist() == [
        {"label": row["label"], "probability": row["probability"]} for row in table
    ]
    assert [row["label"][:2] for row in table if not row["error"]] == [
        [row["label_1"], row["label_2"]] for row in rows if not row["error"]
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["classify", "a.jpg", "-o", "out.txt"],
            "-o: expected a name ending in .csv, .jsonl or .parquet, got 'out.txt'",
        ),
        (
            ["embed", "a.jpg", "-o", "out.csv"],
            "-o: expected a name ending in .npy or .parquet, got 'out.csv'",
        ),
        (["classify", "a.jpg", "--resume"], "--resume: needs the -o FILE"),
        (
            ["classify", "a.jpg", "-o", "out.csv", "--outputs", "predictions,embedding"],
            "--outputs: an embedding and logits are columns of a .parquet file; give one as -o FILE",
        ),
        (
            ["classify", "a.jpg", "-o", "out.parquet", "--outputs", "labels"],
            "--outputs: expected one or more of predictions,embedding,logits, got 'labels'",
        ),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


# Imports once, then forks runs, each going on with the one before, and kills each at a random moment.
KILLER = """
import os, random, signal, sys, time
import pyarrow.parquet
from swsl.cli.main import main
from swsl.deploy import runner

inputs, target, *arguments = sys.argv[1:]
files = (target, target + ".paths.csv")

def start():
    child = os.fork()
    if child == 0:
        os.dup2(os.open(inputs, os.O_RDONLY), 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(main([*arguments, "-", "-o", target, "--resume"]))
    return child

def taken():
    if target.endswith(".parquet"):
        found = [pyarrow.parquet.read_table(target)]
    else:
        found = [open(name, "rb").read() for name in files if os.path.exists(name)]
    for name in files:
        if os.path.exists(name):
            os.remove(name)
    return found

began = time.monotonic()
assert os.waitpid(start(), 0)[1] == 0
seconds, whole = time.monotonic() - began, taken()
rng, kills, under_way = random.Random(20), 0, 0
while kills < 20:
    child, end, alive = start(), time.monotonic() + rng.uniform(0, seconds), True
    while alive and time.monotonic() < end:
        alive = os.waitpid(child, os.WNOHANG)[0] == 0
        time.sleep(0.001)
    if alive:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        under_way += os.path.exists(target + ".partial")
    if os.path.exists(target):
        assert taken() == whole
os.waitpid(start(), 0)
assert taken() == whole
print(under_way)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.csv", "out.npy", "out.parquet"])
def test_runs_killed_at_random_moments(name: str, tmp_path: Path, photo: Path) -> None:
    if not build_info()["compiled"]:
        pytest.skip("too slow without the compiled runner")
    model, inputs = tmp_path / "tiny.pt", tmp_path / "inputs.txt"
    network = swsl.ResNeXt((1, 1, 1, 1), groups=1, width_per_group=4, num_classes=7).eval()
    swsl.export_model(network, model, spec=swsl.PreprocessSpec(input_size=(64, 64)), labels="ABCDEFG")
    inputs.write_text(f"{photo}\n" * 250)
    command = ["embed" if name == "out.npy" else "classify", "--runner", model, "--batch-size", "4"]
    driver = subprocess.run(
        [sys.executable, "-c", KILLER, inputs, tmp_path / name, *command],
        capture_output=True, text=True, env=subprocess_environment(),
    )  # fmt: skip
    assert driver.returncode == 0, driver.stderr
    assert int(driver.stdout) >= 5  # kills that met a run under way
