"""What an output's files hold beside rows: what made them, and who writes to them."""

from __future__ import annotations

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
from conftest import subprocess_environment
from output_runs import (
    INPUTS,
    OUTPUTS,
    RECORD,
    Killed,
    contents,
    fill,
    paths_and_errors,
    rows_in,
    run,
)

from swsl.bulk.run_record import OutputBusyError, ResumeError, locked, record_text
from swsl.cli.main import main


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
        ("outputs", "logits", "outputs predictions and not logits"),
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
def test_what_another_versions_record_has_is_named(name: str, tmp_path: Path) -> None:
    run(name, tmp_path)
    renamed = {**RECORD, "output": "predictions"}
    del renamed["outputs"]
    for record, message in (
        (renamed, "its record has outputs where this one has output;"),
        ({**RECORD, "new": 1}, "its record has nothing else where this one has new;"),
    ):
        with pytest.raises(
            ResumeError, match=f"{name}: was made by another version of swsl: {message} start anew"
        ):
            OUTPUTS[name](tmp_path / name, True, record)


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


HOLDER = """
import pathlib, sys
from swsl.bulk.run_record import locked
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
            assert main(["classify", "x.jpg", "-o", str(tmp_path / name), *more]) == 1
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

    monkeypatch.setattr("swsl.cli.images._open_and_say", interrupted)
    monkeypatch.chdir(tmp_path)
    for command, name in (("classify", "out.csv"), ("embed", "out.npy")):
        assert main([command, "x.jpg", "-o", name]) == 130
        assert capsys.readouterr().err == "swsl: interrupted: nothing was kept, for there was no row yet\n"
        assert not list(tmp_path.iterdir())
    with pytest.raises(Killed):
        run("out.csv", tmp_path, stop_after=8)
    assert main(["classify", "x.jpg", "-o", "out.csv"]) == 130
    assert capsys.readouterr().err == "swsl: interrupted: out.csv.partial is as it was; go on with --resume\n"
    assert main(["classify", "x.jpg"]) == 130
    assert "only what was printed is kept" in capsys.readouterr().err
    monkeypatch.setattr("swsl.cli.images._open_and_say", lambda _: None)
    monkeypatch.setattr("swsl.bulk.run_record.run_record", lambda *_, **__: {})
    monkeypatch.setattr("swsl.cli.images._bulk_output", lambda *_: interrupted(None))
    over = "swsl: out.csv.partial of an interrupted run is written over; --resume would go on with it\n"
    for options, said in (([], over), (["--resume"], "")):
        assert main(["classify", "x.jpg", "-o", "out.csv", *options]) == 130
        assert capsys.readouterr().err.startswith(f"{said}swsl: interrupted")
