"""What is said of long work: in place on a terminal, and in a pipe every ten seconds."""

from __future__ import annotations

import io
import json
import sys
import threading
from pathlib import Path

import pytest

from swsl.system import progress
from swsl.system.progress import Pace, Progress, say, working
from swsl.system.torchrun import handed_over


class Terminal(io.StringIO):
    """Its text, or with ``line`` what stands in the last line."""

    def isatty(self) -> bool:
        return True

    @property
    def line(self) -> str:
        return self.getvalue().split("\033[K")[-1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its last number is the time, and nothing ticks meanwhile."""
    times = [100.0]
    monkeypatch.setattr(progress, "_TICK_S", 3600.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[-1])
    return times


def test_a_pipe_gets_a_line_every_ten_seconds(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    with Progress("images", 1000) as bar:
        for _ in range(25):
            clock.append(clock[-1] + 1)
            bar.advance(10, errors=1)
    assert capsys.readouterr().err.splitlines() == [
        "swsl: 100 of 1,000 images, 10.0 images/s, 10 failed, 1:30 left",
        "swsl: 200 of 1,000 images, 10.0 images/s, 20 failed, 1:20 left",
        "swsl: 250 of 1,000 images, 10.0 images/s, 25 failed, 1:15 left",
    ]
    with Progress("images", 10) as bar:  # over before there was anything to say
        clock.append(clock[-1] + 9)
        bar.advance(10)
    with Progress("images", enabled=False) as bar:
        clock.append(clock[-1] + 100)
        bar.advance()
    assert capsys.readouterr().err == ""


def test_one_long_step_is_told_of_too(monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()

    class Told(io.StringIO):
        def write(self, text: str) -> int:
            if self.getvalue().count("\n") == 2:  # and so on
                written.set()
            return super().write(text)

    told = Told()
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr(progress, "_TICK_S", 0.0)
    monkeypatch.setattr(progress, "_EVERY_S", 0.001)
    with Progress("images", 100) as bar:
        assert written.wait(60)
        bar.advance(16)
    first, *_, last = told.getvalue().splitlines()
    assert first == "swsl: 0 of 100 images, 0.0 images/s"
    assert last.startswith("swsl: 16 of 100 images, ")


def test_a_terminals_line_is_redrawn(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run = Pace(10_000)
    with Progress("bytes", 4_000_000, run=run) as bar:
        clock.append(clock[-1] + 0.06)
        bar.advance(1000)
        assert terminal.line == ""
        clock.append(clock[-1] + 0.06)
        bar.note = "loss 0.5"
        bar.advance(1000)
        assert terminal.line == "0 of 4 MB, loss 0.5, 0.0 MB/s, 0:00 left of the run"
        say("swsl: skipped: a.jpg")
        assert terminal.line == "swsl: skipped: a.jpg\n"
    assert terminal.line.endswith("left of the run\n")
    clock.append(clock[-1] + 3600)
    assert run.left == "4:00:00"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_step_of_unknown_length_is_named(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()

    class Told(io.StringIO):
        def isatty(self) -> bool:
            return terminal

        def write(self, text: str) -> int:
            if "freezing" in text:
                written.set()
            return super().write(text)

    told = Told()
    monkeypatch.setattr(sys, "stderr", told)
    with working("freezing a model"):
        pass
    assert "freezing" not in told.getvalue()
    monkeypatch.setattr(progress, "_WORTH_TELLING_S", 0.0)
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    with working("freezing a model"):
        assert written.wait(60)
    first = told.getvalue().split("\n")[0]
    assert (
        "\r\033[Kfreezing a model, 0:0" in first
        if terminal
        else first.startswith("swsl: freezing a model, 0:0")
    )


def test_only_the_first_process_tells(
    clock: list[float], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    with Progress("images") as bar, working("nothing"):
        assert "swsl progress" not in {t.name for t in threading.enumerate()}
        clock.append(clock[-1] + 100)
        bar.advance()
    assert capsys.readouterr().err == ""


def test_an_error_is_handed_to_torchrun_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    assert not handed_over("swsl: error: x")
    failures = {}
    for rank in (1, 0):  # the second process fails first
        file = tmp_path / str(rank) / "error.json"
        file.parent.mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        assert handed_over("swsl: error: no GPU of its own")
        assert json.loads(file.read_text())
        failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=1, error_file=str(file))
    told = str(ChildFailedError("swsl", failures))
    assert told.count("no GPU of its own") == 1
    assert told.index("Root Cause") < told.index("swsl: error: no GPU of its own")
