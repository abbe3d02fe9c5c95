"""The `swsl` command, mostly as a process of its own."""

from __future__ import annotations

import csv
import functools
import io
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Server, subprocess_environment
from PIL import Image

import swsl
from swsl.cli.main import main
from swsl.deploy import native
from swsl.deploy.runner import build_info

PHOTOGRAPHS = ["a.jpg", "folder/b.png", "folder/deeper/c.jpeg"]


def run(*arguments: object, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "swsl", *map(str, arguments)],
        input=stdin, capture_output=True, text=True, cwd=cwd, env=subprocess_environment(), encoding="utf-8",
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, photo: Path) -> Path:
    """Three photographs, a file that is none, and a broken one."""
    image = Image.open(photo)
    for name in PHOTOGRAPHS:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (tmp_path / "images" / "folder" / "notes.txt").write_text("no image")
    (tmp_path / "images" / "folder" / "bad.jpg").write_bytes(photo.read_bytes()[:1000])
    return tmp_path / "images"


def test_in_a_checkout_the_installed_package_runs(tmp_path: Path) -> None:
    """And not the sources, which have no compiled runner."""
    shutil.copytree(ROOT / "swsl", tmp_path / "swsl")
    (tmp_path / "swsl" / "version.py").write_text('__version__ = "installed"\n')
    environment = {**subprocess_environment(), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "swsl", "--version"]
    assert subprocess.check_output(command, cwd=ROOT, env=environment, text=True) == "swsl installed\n"


def test_in_a_checkout_without_torch_one_line_says_what_to_do() -> None:
    result = subprocess.run(
        [sys.executable, "-S", "-m", "swsl", "list"], cwd=ROOT, capture_output=True, text=True, env={}
    )
    (line,) = result.stderr.splitlines()
    assert "no torch: pip install torch, or in swsl's folder pip install ." in line
    assert result.returncode == 1


def test_list_shows_every_published_fact() -> None:
    result = run("list")
    assert result.returncode == 0
    for variant in swsl.VARIANTS.values():
        facts = [variant.name, variant.url, variant.note, variant.sha256_prefix, f"{variant.parameters:,}"]
        facts += [f"{variant.file_size:,}", f"{variant.top1:.2f}", f"{variant.top5:.2f}"]
        facts += [f"{variant.published_flops / 1e9:.2f} G", f"{variant.macs / 1e9:.2f} G", variant.license]
        facts += map(str, variant.timm_top1)
        facts += [str(variant.training.learning_rate), "64 GPUs", "IG-1B-Targeted", "batch 1536", "30 epochs"]
        facts += [str(variant.preprocess.crop_pct), str(variant.preprocess.mean), "bilinear"]
        for fact in facts:
            assert fact in result.stdout


def test_classify_a_folder(folder: Path, engine: list[str]) -> None:
    result = run("classify", "images", *engine, "--format", "json", "--top-k", 2, cwd=folder.parent)
    assert result.returncode == 1
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["path"] for row in rows] == [f"images/{name}" for name in ("a.jpg", "folder/b.png", "folder/bad.jpg", "folder/deeper/c.jpeg")]  # fmt: skip
    assert [len(row.get("predictions", ())) for row in rows] == [2, 2, 0, 2]
    assert rows[0]["predictions"][0].keys() == {"label", "index", "probability"}
    assert rows[0]["predictions"][0]["probability"] >= rows[0]["predictions"][1]["probability"] > 0
    assert [line for line in result.stderr.splitlines() if "error" in line] == [
        f"swsl: error: {rows[2]['error']}"
    ]
    assert "images/folder/bad.jpg: " in rows[2]["error"]


def test_classify_csv(folder: Path, engine: list[str], server: Server) -> None:
    server.files["/photo.jpg"] = (folder / "a.jpg").read_bytes()
    names = "\n".join([f"{server.url}/photo.jpg", "", "a.jpg", "nowhere.jpg"])
    printed = run("classify", "-", *engine, "--format", "csv", stdin=names, cwd=folder)
    written = run("classify", "-", *engine, "-o", "out.csv", stdin=names, cwd=folder)
    assert (printed.returncode, written.returncode, written.stdout) == (1, 1, "")

    def parsed(text: str, number: Callable[[float], object]) -> list[dict[str, object]]:
        return [
            {
                name: number(float(cell)) if cell and "probability" in name else cell
                for name, cell in row.items()
            }
            for row in csv.DictReader(io.StringIO(text))
        ]

    # What is printed of a list on stdin comes from batches of any size, on which the last digits may depend.
    about = functools.partial(pytest.approx, rel=1e-4)
    rows = parsed(printed.stdout, float)
    assert rows == parsed((folder / "out.csv").read_text(), about)
    assert len(rows) == 3
    assert list(rows[0])[:5] == ["path", "error", "label_1", "index_1", "probability_1"]
    assert {**rows[0], "path": ""} == {**parsed(printed.stdout, about)[1], "path": ""}
    assert rows[2]["error"] == "nowhere.jpg: cannot be opened: No such file or directory"
    assert sorted(path.name for path in folder.iterdir()) == [
        "a.jpg",
        "folder",
        "out.csv",
        "out.csv.run.json",
    ]


def test_a_live_list_on_stdin_gets_each_answer_when_it_is_computed(folder: Path, engine: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "swsl", "classify", "-", *engine, "--format", "json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=subprocess_environment(),
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        stop = threading.Timer(120, process.kill)
        stop.start()
        # Each answer is read before the next name is written: waiting for a full batch would be waiting for ever.
        for names in (["a.jpg"], ["nowhere.jpg"], ["a.jpg", "folder/b.png"], ["folder/deeper/c.jpeg"]):
            process.stdin.write("".join(f"{name}\n" for name in names))
            process.stdin.flush()
            for name in names:
                row = json.loads(process.stdout.readline())
                assert row["path"] == name
                assert ("error" in row) == (name == "nowhere.jpg")
        process.stdin.write("a.jpg")
        process.stdin.close()
        assert json.loads(process.stdout.read())["path"] == "a.jpg"
        stop.cancel()
    assert process.returncode == 1


def test_an_interrupted_live_run_ends_at_once(folder: Path, engine: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "swsl", "classify", "-", *engine, "--format", "json"], text=True, cwd=folder,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=subprocess_environment(),
    ) as process:  # fmt: skip
        stop = threading.Timer(120, process.kill)
        stop.start()
        process.stdin.write("a.jpg\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)  # stdin stays open, and a thread waits for its next line
        assert process.wait() == 130
        assert process.stderr.read().splitlines()[-1].startswith("swsl: interrupted")
        stop.cancel()


def test_classify_table(folder: Path, engine: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["classify", str(folder / "a.jpg"), *engine, "--top-k", "3"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == str(folder / "a.jpg")
    assert len(lines) == 4
    assert all("%" in line for line in lines[1:])
    assert captured.err.splitlines()[-1].startswith(("swsl: compiled runner (", "swsl: eager PyTorch "))


def test_failures_are_one_line_and_leave_no_file(folder: Path, server: Server) -> None:
    server.stop()
    result = run("classify", "a.jpg", "--weights", f"{server.url}/w.pth", "-o", "out.csv", cwd=folder)
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("swsl: error: --weights: http://127.0.0.1")
    assert not (folder / "out.csv").exists()


def test_device_and_dtype_reach_the_runner(
    folder: Path, engine: list[str], capsys: pytest.CaptureFixture
) -> None:
    photograph = str(folder / "a.jpg")
    assert main(["classify", photograph, *engine, "--device", "cuda:97"]) == 1
    assert "cuda:97" in capsys.readouterr().err
    arguments = ["embed", photograph, *engine, "--dtype", "bfloat16", "-o", str(folder / "a.npy")]
    if build_info()["compiled"]:
        assert main(arguments) == 0
        assert "bfloat16) on cpu" in capsys.readouterr().err
    else:
        assert main(arguments) == 1
        assert "--dtype: needs the compiled runner" in capsys.readouterr().err


def test_what_swsl_classify_has_is_here_too(
    folder: Path, photo: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}

    def note(method: str) -> None:
        real = getattr(swsl.Runner, method)
        monkeypatch.setattr(
            swsl.Runner,
            method,
            lambda *arguments, **options: given.update(options) or real(*arguments, **options),
        )

    note("__init__")
    note("stream")
    exif = Image.Exif()
    exif[0x112] = 6  # turn by a quarter
    Image.open(photo).save(folder / "turned.jpg", exif=exif)
    out = folder / "out.csv"
    arguments = ["classify", str(folder / "turned.jpg"), *tiny, "-o", str(out), "--top-k", "1"]
    counts = ["--cores", "2", "--threads", "1", "--workers", "3"]
    assert main([*arguments, *counts, "--exif-orientation"]) == 0
    assert (given["cores"], given["threads"], given["workers"]) == (2, 1, 3)
    ((expected,),) = swsl.Runner(tiny[1], exif_orientation=True).classify([folder / "turned.jpg"], top_k=1)
    (row,) = csv.DictReader(out.open())
    assert float(row["probability_1"]) == pytest.approx(expected.probability, rel=1e-5)
    record = json.loads((folder / "out.csv.run.json").read_text())
    assert record["exif_orientation"] is True
    assert main([*arguments, "--resume"]) == 1  # rows of images that were not turned
    assert main([*arguments, *counts, "--exif-orientation", "--resume"]) == 0
    assert main([*arguments]) == 0
    (other,) = csv.DictReader(out.open())
    assert other["probability_1"] != row["probability_1"]


@pytest.mark.parametrize("option", ["--dtype=bfloat16", "--threads=1"])
def test_what_eager_pytorch_lacks_is_refused(
    option: str, folder: Path, weights50: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "swsl.deploy.runner.build_info", lambda: {"compiled": False, "reason": "it is not built"}
    )
    assert main(["classify", str(folder / "a.jpg"), "--weights", str(weights50), option]) == 1
    assert f"{option.split('=')[0]}: needs the compiled runner" in capsys.readouterr().err


def test_max_pixels_reach_the_runner(folder: Path, engine: list[str], capsys: pytest.CaptureFixture) -> None:
    photograph = str(folder / "a.jpg")
    assert main(["classify", photograph, *engine, "--max-pixels", "99"]) == 1
    assert f"{photograph}: " in (error := capsys.readouterr().err)
    assert "expected at least 1 and at most 99; raise --max-pixels if you trust it" in error


def test_an_output_that_cannot_be_written(
    folder: Path, engine: list[str], capsys: pytest.CaptureFixture
) -> None:
    arguments = [
        "classify",
        str(folder / "a.jpg"),
        *engine,
        "-o",
        str(folder / "no" / "out.csv"),
    ]
    assert main(arguments) == 1
    assert "no/" in capsys.readouterr().err
    for output, message in (
        (folder / "no" / "picture.png", f"picture.png: there is no folder {folder / 'no'}; make it first"),
        (folder, f"{folder}: is a directory; expected the name of a file to write"),
    ):
        assert main(["demo", *engine, "-o", str(output)]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("swsl: error: ")
        assert last.endswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["classify"], "required: PATH|DIR|URL|-"),
        (["classify", "a.jpg", "--model", "swsl_resnext50"], "did you mean swsl_resnext50_32x4d"),
        (["classify", "a.jpg", "--top-k", "0"], "expected a whole number of 1 or more, got '0'"),
        (["classify", "a.jpg", "--format", "xml"], "invalid choice: 'xml'"),
        (["classify", "a.jpg", "--device", "gpu"], "expected cpu, cuda, cuda:N or auto, got 'gpu'"),
        (
            ["classify", "a.jpg", "--format", "json", "-o", "a.csv"],
            "the name after -o decides; give one of them",
        ),
        (["classify", "a.jpg", "--runner", "m.pt", "--weights", "w.pth"], "not allowed with argument"),
        (["demo", "--runner", "m.pt", "--model", "swsl_resnext101_32x8d"], "m.pt is a whole model"),
        (["validate", "dir", "--frozen", "m.pt", "--weights", "w.pth"], "not allowed with argument"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_demo_without_published_weights(tmp_path: Path) -> None:
    result = run("demo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, *rest = result.stdout.splitlines()
    assert (
        first
        == "The published weights are not here, so these are weights from a fixed seed: these predictions mean nothing."
    )
    assert "CC-BY-NC" not in result.stdout
    assert sum("%" in line for line in rest) == 5
    assert any(line.startswith("decode ") and "preprocess" in line and "forward" in line for line in rest)
    with Image.open(tmp_path / "swsl-demo.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 300
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".png"] == ["swsl-demo.png"]


def test_demo_with_weights(tmp_path: Path, engine: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["demo", *engine, "-o", str(tmp_path / "picture.png")]) == 0
    assert "mean nothing" not in capsys.readouterr().out


@pytest.mark.skipif(not build_info()["compiled"], reason="the runner is missing as a whole")
def test_demo_says_what_was_not_built(
    tmp_path: Path, engine: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for left_out, line in (
        ("", ""),
        (
            "CUDA kernels: nvcc failed with exit code 1:\nat length",
            "CUDA kernels: nvcc failed with exit code 1\n",
        ),
    ):
        monkeypatch.setattr(native, "libtorch_record", lambda left_out=left_out: {"left_out": left_out})
        assert main(["demo", *engine, "-o", str(tmp_path / "picture.png")]) == 0
        printed = capsys.readouterr().out
        assert printed.count("the compiled runner was built without ") == bool(left_out)
        assert line in printed


def test_interruption_leaves_no_traceback(folder: Path, engine: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "swsl", "classify", "-", *engine, "--batch-size", "1", "-o", "out.csv"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=subprocess_environment(),
    )  # fmt: skip
    try:
        # The first row comes at the latest when as many images are under way as a stream takes, three batches.
        process.stdin.write("nowhere.jpg\n" * 8)
        process.stdin.flush()
        reported = 0
        while reported < 2:  # then the first one's row is written: its line comes a moment before that
            reported += "nowhere.jpg" in process.stderr.readline()
            assert process.poll() is None
        process.send_signal(signal.SIGINT)  # it waits for a ninth name
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    *failures, kept = errors.splitlines()
    assert all(line.startswith("swsl: error: nowhere.jpg: ") for line in failures)
    rows = (folder / "out.csv.partial").read_text().splitlines()[1:]
    assert 1 <= len(rows) <= 8
    assert kept == f"swsl: interrupted: {len(rows)} rows are in out.csv.partial; go on with --resume"
    assert sorted(path.name for path in folder.glob("*out*")) == [
        "out.csv.partial",
        "out.csv.partial.run.json",
    ]


def test_main_module_is_the_command() -> None:
    assert f"swsl {swsl.__version__}" in run("--version").stdout
    assert (ROOT / "swsl" / "__main__.py").exists()
