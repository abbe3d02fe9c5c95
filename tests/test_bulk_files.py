"""What an output's files hold beside rows: what made them, who writes to them, and names that are no UTF-8."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import subprocess_environment
from test_bulk import FEATURES, INPUTS, OUTPUTS, RECORD, Killed, contents, result_of, run

import swsl
from swsl import cli
from swsl.image import ImageError
from swsl.interrupts import held_back
from swsl.output import written_name
from swsl.prediction import Prediction, Result
from swsl.run_record import OutputBusyError, ResumeError, locked, record_text
from swsl.runner import build_info


def fill(
    folder: Path, name: str, inputs: list[str], make: Callable[[str], Result] = result_of, stop_at: int = 1000
) -> bool:
    """A run of these inputs with --resume. Returns whether it found all of them there."""
    with OUTPUTS[name](folder / name, True) as output:
        complete = output.complete
        for path in output.remaining(inputs):
            complete = False
            output.write([make(path)])
            if output.rows == stop_at:
                raise Killed
    return complete


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("whole", [False, True])
def test_rows_of_another_model_or_options_are_refused(name: str, whole: bool, tmp_path: Path) -> None:
    if whole:
        run(name, tmp_path)
    else:
        with pytest.raises(Killed):
            run(name, tmp_path, stop_after=8)
    before = (
        contents(tmp_path / f"{name}.partial")
        if (tmp_path / f"{name}.partial").is_dir()
        else contents(tmp_path)
    )
    for key, value, message in (
        ("model", "f" * 64, "model 0123456789abcdef and not ffffffffffffffff"),
        ("dtype", "bfloat16", "dtype float32 and not bfloat16"),
        ("top_k", 3, "top_k 2 and not 3"),
        ("output", "logits", "output predictions and not logits"),
        ("nvjpeg", True, "nvjpeg null and not true"),
    ):
        with pytest.raises(
            ResumeError, match=rf"{name}(\.partial)?: was made with {message}; give the same model"
        ):
            OUTPUTS[name](tmp_path / name, True, {**RECORD, key: value})
    assert (
        contents(tmp_path / f"{name}.partial")
        if (tmp_path / f"{name}.partial").is_dir()
        else contents(tmp_path)
    ) == before
    run(name, tmp_path, resume=True)


@pytest.mark.parametrize("name", OUTPUTS)
def test_rows_that_do_not_say_what_made_them_are_refused(name: str, tmp_path: Path) -> None:
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"path": INPUTS}), tmp_path / name)
    else:
        run(name, tmp_path)
        (tmp_path / f"{name}.run.json").unlink()
    with pytest.raises(ResumeError, match=r"does not say what made it .*; start anew without --resume"):
        OUTPUTS[name](tmp_path / name, True)


def test_the_record_is_where_the_rows_are(tmp_path: Path) -> None:
    for name in OUTPUTS:
        run(name, tmp_path)
        if name.endswith(".parquet"):
            text = pq.read_schema(tmp_path / name).metadata[b"swsl.run"]
        else:
            text = (tmp_path / f"{name}.run.json").read_bytes()
        assert text == record_text(RECORD).encode()


def rows_in(folder: Path, name: str) -> object:
    files = (folder / name, folder / f"{name}.paths.csv")
    return [pq.read_table(f) if f.suffix == ".parquet" else f.read_bytes() for f in files if f.exists()]


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_finished_output_is_complete_only_if_it_is(name: str, tmp_path: Path) -> None:
    folder, at_once = tmp_path / "in two runs", tmp_path / "at once"
    folder.mkdir()
    assert not fill(folder, name, INPUTS[:20])
    (folder / name).chmod(0o640)
    before = contents(folder)
    assert fill(folder, name, INPUTS[:20])
    for inputs, message in (
        (INPUTS[:19], "row 20 is of .*, but input 20 is now missing"),
        (INPUTS[1:21], "row 1 is of folder/0"),
    ):
        with pytest.raises(ResumeError, match=rf"(?s){name}: {message}"):
            fill(folder, name, inputs)
    assert contents(folder) == before

    with pytest.raises(Killed):
        fill(folder, name, INPUTS, stop_at=25)
    # The file that was whole stays until there is a better one.
    assert {path: (folder / path).read_bytes() for path in before} == before
    assert (folder / f"{name}.partial").exists()
    assert not fill(folder, name, INPUTS)
    assert stat.S_IMODE((folder / name).stat().st_mode) == 0o640
    at_once.mkdir()
    run(name, at_once)
    assert rows_in(folder, name) == rows_in(at_once, name)
    assert contents(folder).keys() == before.keys()


@pytest.mark.parametrize("name", OUTPUTS)
def test_killed_between_any_two_changes_of_a_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on with a finished output, and completing it: at each moment what is there can be gone on with."""
    at_once = tmp_path / "at once"
    at_once.mkdir()
    run(name, at_once)
    for moment in range(100):
        folder = tmp_path / str(moment)
        folder.mkdir()
        fill(folder, name, INPUTS[:20])
        changes = 0

        def dead(work: Callable[..., None], moment: int = moment) -> Callable[..., None]:
            def change(*arguments: object, **options: object) -> None:
                nonlocal changes
                if changes == moment:
                    raise Killed
                changes += 1
                work(*arguments, **options)

            return change

        killed = False
        with monkeypatch.context() as patch:
            for function in ("replace", "unlink", "mkdir", "rmdir"):
                patch.setattr(os, function, dead(getattr(os, function)))
            try:
                fill(folder, name, INPUTS)
            except Killed:
                killed = True
        assert (folder / name).exists()
        fill(folder, name, INPUTS)
        assert rows_in(folder, name) == rows_in(at_once, name)
        left = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert left == {path.name for path in at_once.iterdir()}
        if not killed:
            break
    assert moment > 3


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_interruption_before_the_first_row_leaves_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), OUTPUTS[name](tmp_path / name, False):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_signals_wait_for_what_they_would_tear() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), held_back():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


# ---- Names ----

NAMES = [
    b"\xff.jpg", b'caf\xe9, "1".jpg', b"\xe2\x82.jpg", b"\xed\xa0\x80\xc0\xaf\xf4\x90\x80\x80.jpg", b"\xc3\xa9\xf0\x9f\x98\x80.jpg",
    b"\\xff\\x5c\\x5\\xFF\\.jpg", b"\\\xff\\x4\xff.jpg", b"a\nb\rc\td\x01\x7f.jpg", b" =1+1.jpg", "\u2028\u0085.jpg".encode(),
]  # fmt: skip


def read_back(text: str) -> str:
    """As swsl/output.py documents it."""
    return os.fsdecode(
        re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode())
    )


def paths_and_errors(file: Path) -> tuple[list[str], list[str | None]]:
    """As other programs read them, which take an output for UTF-8."""
    if file.suffix == ".parquet":
        table = pq.read_table(pa.BufferReader(file.read_bytes())).to_pydict()
        return table["path"], table["error"]
    if file.suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    else:
        names = file if file.suffix == ".csv" else file.with_name(f"{file.name}.paths.csv")
        with open(names, encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
    return [row["path"] for row in rows], [row.get("error") for row in rows]


def test_names_are_written_as_utf8_and_come_back() -> None:
    assert written_name(os.fsdecode(b"\xff.jpg")) == r"\xff.jpg"
    assert written_name("C:\\a\\b\\x41\0") == r"C:\a\b\x5cx41\x00"
    assert written_name("https://a/ü%20?b=\\xz") == "https://a/ü%20?b=\\xz"
    pairs = [bytes([i, j]) for i in range(256) for j in (0x0A, 0x5C, 0x78, 0x80, 0xA0, 0xBF, 0xC3, 0xFF)]
    for name in map(os.fsdecode, [*NAMES, *pairs]):
        text = written_name(name)
        text.encode()
        assert read_back(text) == name


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_output_keeps_every_row_whatever_its_name(name: str, tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in NAMES]
    bad = names[::3]

    def result(path: str) -> Result:
        if path in bad:
            return Result(path, [], ImageError(f"{path}: truncated"))
        return Result(path, [Prediction("a", 1, 0.5)], row=torch.ones(FEATURES))

    with pytest.raises(Killed):
        fill(tmp_path, name, names, result, stop_at=8)
    assert not fill(tmp_path, name, names, result)
    assert fill(tmp_path, name, names, result)
    paths, errors = paths_and_errors(tmp_path / name)
    assert [read_back(path) for path in paths] == names
    assert [bool(error) for error in errors] == [path in bad for path in names]


# ---- Commands ----


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments for a model that takes no time."""
    if not build_info()["compiled"]:
        pytest.skip("a home-made network needs the compiled runner")
    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    network = swsl.ResNeXt((1, 1, 1, 1), groups=1, width_per_group=4, num_classes=7).eval()
    swsl.export_model(network, path, spec=swsl.PreprocessSpec(input_size=(64, 64)), labels="ABCDEFG")
    return ["--runner", str(path)]


@pytest.fixture
def odd_names(tmp_path: Path, photo: Path) -> Path:
    folder = tmp_path / "odd names"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        content = b"no image" if number % 3 == 0 else photo.read_bytes()
        try:
            Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content)
        except OSError:
            pytest.skip("this file system takes only UTF-8 names")
    return folder


def test_commands_take_any_name(odd_names: Path, tmp_path: Path, tiny: list[str]) -> None:
    paths = [str(odd_names / name) for name in sorted(map(os.fsdecode, NAMES), key=os.fsencode)]
    one_line = [path for path in paths if "\n" not in path]
    listed = "".join(f"{path}\n" for path in one_line).encode("utf-8", "surrogateescape")
    for name, command, inputs, stdin, expected in (
        ("out.csv", "classify", "-", listed, one_line),
        ("out.jsonl", "classify", str(odd_names), b"", paths),
        ("out.parquet", "classify", "-", listed, one_line),
        ("out.npy", "embed", str(odd_names), b"", paths),
    ):
        output = os.path.join(tmp_path, os.fsdecode(b"\xff") + name)
        done = swsl_command([command, inputs, *tiny, "-o", output], stdin)
        assert done.returncode == 1, done.stderr
        assert done.stderr.count(b"swsl: error: ") == sum(map(is_bad, expected))
        read, errors = paths_and_errors(Path(output))
        assert [read_back(path) for path in read] == expected
        assert [bool(error) for error in errors] == list(map(is_bad, expected))
    assert swsl_command(["embed", inputs, *tiny, "-o", output, "--resume"]).stderr.endswith(
        b"out.npy is complete\n"
    )


def is_bad(path: str) -> bool:
    """Of the images in `odd_names`."""
    return NAMES.index(os.fsencode(Path(path).name)) % 3 == 0


def test_printed_rows_are_utf8_whatever_the_terminal(
    odd_names: Path, tmp_path: Path, tiny: list[str]
) -> None:
    for style, name in (("csv", "out.csv"), ("json", "out.jsonl")):
        done = swsl_command(["classify", str(odd_names), *tiny, "--format", style])
        (tmp_path / name).write_bytes(done.stdout)
        paths, _ = paths_and_errors(tmp_path / name)
        assert sorted(os.fsencode(Path(read_back(path)).name) for path in paths) == sorted(NAMES)
    table = swsl_command(["classify", str(odd_names), *tiny])
    assert table.stdout.count(b".jpg") == sum(not is_bad(os.fsdecode(name)) for name in NAMES)
    assert rb"caf\xe9" in table.stdout


def swsl_command(arguments: list[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "swsl", *arguments], input=stdin, capture_output=True, timeout=300,
        env={**subprocess_environment(), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip


def test_outputs_go_through_links_and_into_pipes(
    tmp_path: Path, photo: Path, tiny: list[str], capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "real").mkdir()
    for command, name in (("classify", "out.csv"), ("classify", "out.parquet"), ("embed", "out.npy")):
        (tmp_path / name).symlink_to(f"real/{name}")
        arguments = [command, str(photo), *tiny, "-o", str(tmp_path / name)]
        assert cli.main(arguments) == 0
        (tmp_path / "real" / name).chmod(0o604)
        assert cli.main(arguments) == 0
        assert (tmp_path / name).is_symlink()
        assert stat.S_IMODE((tmp_path / "real" / name).stat().st_mode) == 0o604
        assert cli.main([command, str(photo), *tiny, "--resume", "-o", str(tmp_path / "real" / name)]) == 0
        assert "is complete" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.npy", "out.parquet", "real"]

    for name in ("pipe.csv", "pipe", "pipe.npy", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
    for name, more in (("pipe.csv", []), ("pipe", ["--format", "csv"])):
        with subprocess.Popen(["cat", tmp_path / name], stdout=subprocess.PIPE) as reader:
            assert cli.main(["classify", str(photo), *tiny, "-o", str(tmp_path / name), *more]) == 0
            assert reader.stdout
            assert reader.stdout.read() == (tmp_path / "out.csv").read_bytes()
    for arguments in (
        ["classify", "-o", str(tmp_path / "pipe.csv"), "--resume"], ["classify", "-o", str(tmp_path / "pipe.parquet")],
        ["embed", "-o", str(tmp_path / "pipe.npy")], ["embed", "-o", str(tmp_path / "pipe.parquet")],
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            cli.main([*arguments, str(photo), *tiny])
        assert "expected a file, got a pipe or device" in capsys.readouterr().err
    assert all((tmp_path / name).is_fifo() for name in ("pipe.csv", "pipe", "pipe.npy", "pipe.parquet"))


def test_a_full_device_is_an_error_and_stays_one(
    tmp_path: Path, photo: Path, tiny: list[str], capsys: pytest.CaptureFixture
) -> None:
    device = tmp_path / "full.csv"  # of this test's own: /dev/full is everybody's
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        device.write_bytes(b"")
    except OSError:
        pytest.skip("only root makes devices, and not on every file system")
    assert cli.main(["classify", str(photo), *tiny, "-o", str(device)]) == 1
    assert "full.csv: cannot be written: No space left on device" in capsys.readouterr().err
    assert device.is_char_device()
    assert [path.name for path in tmp_path.iterdir()] == ["full.csv"]


HOLDER = """
import pathlib, sys
from swsl.run_record import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_writer_is_refused_and_a_killed_one_does_not_block(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    target = tmp_path / "out.csv"
    target.write_text("finished")
    (tmp_path / "link.csv").symlink_to("out.csv")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=subprocess_environment()
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        for name, more in (("out.csv", []), ("out.csv", ["--resume"]), ("link.csv", [])):
            assert cli.main(["classify", "x.jpg", "-o", str(tmp_path / name), *more]) == 1
            assert f"out.csv: is being written by process {process.pid} on " in capsys.readouterr().err
        process.kill()
    assert (tmp_path / "out.csv.lock").exists()
    with (
        locked(target),
        pytest.raises(OutputBusyError, match=f"by process {os.getpid()} on "),
        locked(target),
    ):
        pass
    assert contents(tmp_path) == {"out.csv": b"finished", "link.csv": b"finished"}


def test_a_lock_is_held_by_one_at_a_time_while_files_come_and_go(tmp_path: Path) -> None:
    inside, most, taken = [], [], []

    def take() -> None:
        for _ in range(200):
            try:
                with locked(tmp_path / "out.csv"):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0)
                    inside.pop()
                    taken.append(1)
            except OutputBusyError:
                time.sleep(0)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(taken) > 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_sigterm_keeps_the_rows_and_says_how_to_go_on(
    name: str, tmp_path: Path, photo: Path, tiny: list[str]
) -> None:
    command = "embed" if name == "out.npy" else "classify"
    arguments = [sys.executable, "-m", "swsl", command, "-", *tiny, "--batch-size", "1", "-o", name]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=subprocess_environment()
    ) as process:  # fmt: skip
        stop = threading.Timer(120, process.kill)
        stop.start()
        assert process.stdin
        assert process.stderr
        process.stdin.write("nowhere.jpg\n" * 8)
        process.stdin.flush()
        lines = iter(process.stderr.readline, "")
        assert sum("nowhere.jpg" in next(lines) for _ in range(3)) >= 2  # then rows are there, or about to be
        process.send_signal(signal.SIGTERM)
        errors = process.stderr.read()
        assert process.wait() == 143
        stop.cancel()
    found = re.search(
        rf"swsl: interrupted: (\d+) rows are in {name}\.partial; go on with --resume\n$", errors
    )
    assert found, errors
    rest = subprocess.run(
        [*arguments, "--resume"], input="nowhere.jpg\n" * 8, capture_output=True, text=True, cwd=tmp_path,
        env=subprocess_environment(), timeout=300,
    )  # fmt: skip
    assert f"{found[1]} rows are in {name}.partial, going on" in rest.stderr
    assert len(paths_and_errors(tmp_path / name)[0]) == 8


def test_an_interruption_while_the_model_loads_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("swsl.cli_images._open_and_say", interrupted)
    monkeypatch.chdir(tmp_path)
    for command, name in (("classify", "out.csv"), ("embed", "out.npy")):
        assert cli.main([command, "x.jpg", "-o", name]) == 130
        assert capsys.readouterr().err == "swsl: interrupted: nothing was kept, for there was no row yet\n"
        assert not list(tmp_path.iterdir())
    with pytest.raises(Killed):
        run("out.csv", tmp_path, stop_after=8)
    assert cli.main(["classify", "x.jpg", "-o", "out.csv"]) == 130
    assert capsys.readouterr().err == "swsl: interrupted: out.csv.partial is as it was; go on with --resume\n"
    assert cli.main(["classify", "x.jpg"]) == 130
    assert "only what was printed is kept" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_each_program_goes_on_with_what_the_other_began(
    name: str, tmp_path: Path, photo: Path, odd_names: Path, tiny: list[str], classify_program: Path
) -> None:
    python = [sys.executable, "-m", "swsl", "classify", *tiny, "-o", name, "--resume"]
    cpp = [str(classify_program), tiny[1], "-o", name, "--resume"]
    for first, second in ((python, cpp), (cpp, python)):

        def go(
            command: list[str], *images: Path, more: tuple[str, ...] = ()
        ) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*command, *map(str, images), *more], capture_output=True, text=True, cwd=tmp_path, env=subprocess_environment()
            )  # fmt: skip

        assert go(first, odd_names).returncode == 1
        records = (tmp_path / f"{name}.run.json").read_text()
        assert go(second, odd_names).stderr.endswith(f"{name} is complete\n")
        assert go(second, odd_names, photo).returncode == 0
        assert (tmp_path / f"{name}.run.json").read_text() == records
        assert go(first, odd_names, photo).stderr.endswith(f"{name} is complete\n")
        refused = go(second, odd_names, photo, more=("--top-k", "2"))
        assert refused.returncode == 1
        assert "was made with top_k 5 and not 2" in refused.stderr
        paths, _ = paths_and_errors(tmp_path / name)
        assert len(paths) == len(NAMES) + 1
        (tmp_path / name).unlink()
