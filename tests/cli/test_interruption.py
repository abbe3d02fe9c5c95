"""Ctrl-C and SIGTERM: what each command says that it has kept, and how to go on. The bulk runs are in ../bulk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_ARGUMENTS, subprocess_environment, swsl_command

from swsl.cli.main import main
from swsl.training.recipe import TrainOptions
from swsl.training.resuming import given_options
from swsl.training.train import _Run, finetune


def stopped_by(number: int) -> Callable[..., None]:
    def stop(*_: object, **__: object) -> None:
        signal.raise_signal(number)
        raise AssertionError(f"signal {number} did not stop it")

    return stop


@pytest.mark.parametrize(
    ("where", "command"),
    [
        ("torch.jit.save", "export {trained} -o out.pt"),
        ("safetensors.torch.save_file", "export {trained} --format timm -o out"),
        ("json.dump", "validate {data}/val --weights {trained} --json out.json"),
        ("json.dump", "probe {data} --weights {trained} --json out.json"),
        ("PIL.Image.Image.save", "explain {photo} --weights {trained} -o out.png"),
        ("swsl.cli.demo.open_runner", "demo -o out.png"),
        ("swsl.evaluation.profile.profile", "profile {trained} -o out.png"),
        ("swsl.deploy.export.verify", "verify {trained}"),
    ],
)
def test_a_command_that_keeps_nothing_says_so(
    where: str, command: str, trained: Path, few_digits: Path, photo: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    number = signal.SIGTERM if command.startswith("export") else signal.SIGINT
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(where, stopped_by(number))
    words = command.format(trained=trained, data=few_digits, photo=photo).split()
    assert main(words) == 128 + number
    assert capsys.readouterr().err.endswith("swsl: interrupted: nothing was kept; run it again\n")
    assert os.listdir() == []
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_an_error_that_a_signal_caused_is_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stop(*_: object) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise RuntimeError("DataLoader worker is killed by signal: Terminated") from error
        return 0

    monkeypatch.setattr("swsl.cli.main._list", stop)
    assert main(["list"]) == 143
    assert capsys.readouterr().err == "swsl: interrupted: nothing was kept; run it again\n"


def test_a_worker_that_is_stopped_too_costs_no_words(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """torchrun signals a whole process group; DataLoader raises when a worker's end is told, however late."""

    def worker_ended(*_: object) -> None:
        raise RuntimeError("DataLoader worker is killed by signal: Terminated")

    def words(*_: object) -> str:
        signal.raise_signal(signal.SIGCHLD)
        return "what is kept"

    monkeypatch.setattr("swsl.training.train.list_training_data", stopped_by(signal.SIGTERM))
    monkeypatch.setattr("swsl.training.train.what_is_kept", words)
    before = signal.signal(signal.SIGCHLD, worker_ended)
    try:
        assert main(["finetune", str(few_digits), "-o", str(tmp_path / "run")]) == 143
        assert signal.getsignal(signal.SIGCHLD) is worker_ended
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert capsys.readouterr().err == "swsl: interrupted: what is kept\n"


def test_a_second_signal_ends_the_process_at_once() -> None:
    script = """if True:
        import os, signal, time
        import swsl.cli.main

        def stop(_):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
            finally:  # a clean-up that hangs
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)

        swsl.cli.main._list = stop
        swsl.cli.main.main(["list"])
    """
    done = subprocess.run([sys.executable, "-c", script], env=subprocess_environment(), timeout=50)
    assert done.returncode == -signal.SIGINT


def test_what_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under nohup, or in the background of a shell."""

    def ignore(_: object) -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setattr("swsl.cli.main._list", ignore)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert main(["list"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the run's step of this number, from 0."""
    real, done = _Run._train_step, 0

    def train_step(self: _Run, *arguments: Any) -> None:
        nonlocal done
        if done == step:
            raise KeyboardInterrupt
        done += 1
        real(self, *arguments)

    monkeypatch.setattr(_Run, "_train_step", train_step)


def test_a_training_run_says_what_it_has_kept(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def left(step: int, **changes: Any) -> str:
        with monkeypatch.context() as patches:
            interrupt(step, patches)
            with pytest.raises(KeyboardInterrupt) as caught:
                finetune(replace(options, **changes), report=lambda _: None)
        return str(caught.value)

    last, on = options.output / "last.pth", "go on with the same command and --resume"
    nothing = "nothing was kept but the options, for there was no checkpoint yet"
    assert left(0) == f"{nothing}; --checkpoint-steps N writes one every N steps"
    free = {name: getattr(options, name) for name in ("data", "output", "workers", "device")}
    asked = {**free, "resume": True}
    assert given_options(asked) == replace(options, resume=True)
    assert given_options({**asked, "batch_size": 3}).batch_size == 3
    assert left(3, checkpoint_steps=2) == f"{last}, of epoch 1 after step 2, is kept; {on}"
    assert left(5, resume=True) == f"{last}, of epoch 2 after step 0, is kept; {on}"
    with monkeypatch.context() as patches:
        patches.setattr("swsl.training.train.list_training_data", stopped_by(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match=f"last.pth is kept; {on}"):
            finetune(replace(options, resume=True))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_stops_a_training_run_of_several_processes(
    processes: int, few_digits: Path, tmp_path: Path
) -> None:
    """Workers that load images, and the processes of torchrun, which gets the signal and passes it on."""
    output = tmp_path / "run"
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "swsl",
    ]
    command = swsl_command() if processes == 1 else launcher
    command += ["finetune", str(few_digits), *SMALL_ARGUMENTS, "--epochs", "1000", "--batch-size", "8"]
    command += ["--workers", "1", "--device", "cpu", "-o", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=subprocess_environment())
    try:
        deadline = time.monotonic() + 100
        while not (output / "last.pth").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    lines = [line for line in errors.splitlines() if line.startswith("swsl: interrupted")]
    (kept,) = lines
    assert kept.startswith(f"swsl: interrupted: {output}/last.pth, of epoch ")
    assert kept.endswith(" is kept; go on with the same command and --resume")
    if processes == 1:
        assert process.returncode == 143
        assert "Traceback" not in errors
    assert torch.load(output / "last.pth", weights_only=True)["training"]["epoch"] >= 1
