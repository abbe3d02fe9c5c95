"""`Runner.stream` as Python sees it."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import seed_model, subprocess_environment
from PIL import Image

import swsl
from swsl.deploy.export import export_model
from swsl.deploy.runner import Runner, build_info

if not build_info()["compiled"]:
    if os.environ.get("SWSL_REQUIRE_RUNNER") == "1":
        raise ImportError(build_info()["reason"])
    pytest.skip(build_info()["reason"], allow_module_level=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = seed_model(swsl.ResNeXt((1, 1, 1, 1), groups=4, width_per_group=4, num_classes=10))
    path = tmp_path_factory.mktemp("frozen") / "tiny.pt"
    export_model(
        model, path, spec=swsl.PreprocessSpec(input_size=(64, 64)), labels=[f"class {i}" for i in range(10)]
    )
    return path


@pytest.fixture(scope="module")
def runner(path: Path) -> Runner:
    return Runner(path, batch_size=4)


@pytest.mark.parametrize(("batch_size", "workers"), [(0, 0), (1, 1), (3, 2), (16, 5)])
def test_results_are_those_of_the_runner_in_order(
    runner: Runner, photo: Path, batch_size: int, workers: int
) -> None:
    upright = Image.open(photo)
    images: list[object] = [photo, upright.rotate(90), photo.read_bytes(), b"nothing", 3, photo] * 5
    images[9] = bytearray(photo.read_bytes())
    options = {"batch_size": batch_size, "workers": workers}
    good = [image for image in images if not isinstance(image, int) and image != b"nothing"]
    expected = {
        "predictions": iter([[p.index for p in predictions] for predictions in runner.classify(good, 3)]),
        "logits": iter(runner.logits(good)),
        "embedding": iter(runner.embed(good)),
    }
    for output, rows in expected.items():
        results = list(runner.stream(iter(images), top_k=3, outputs=output, **options))
        assert [result.source for result in results] == images
        for result in results:
            if result.source == b"nothing" or result.source == 3:
                assert isinstance(result.error, (swsl.ImageError, TypeError))
                assert (result.predictions, result.embedding, result.logits) == ([], None, None)
            elif output == "predictions":
                assert [p.index for p in result.predictions] == next(rows)
            else:
                torch.testing.assert_close(getattr(result, output), next(rows), rtol=1e-4, atol=1e-4)


def test_an_endless_generator_is_taken_from_as_far_as_needed(runner: Runner, photo: Path) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield photo

    stream = runner.stream(endless(), batch_size=2)
    assert taken == 0
    for received in range(1, 40):
        assert next(stream).predictions
        assert taken <= received + 6
    threads = len(os.listdir("/proc/self/task"))
    stream.close()
    assert len(os.listdir("/proc/self/task")) < threads
    with pytest.raises(StopIteration):
        next(stream)


def test_results_come_as_soon_as_they_are_there_on_the_callers_thread_too(
    runner: Runner, photo: Path
) -> None:
    received, caller = 0, threading.get_ident()

    def sources() -> Iterator[object]:
        assert threading.get_ident() == caller
        yield 3
        assert received == 1  # its error needs no batch
        yield from [photo] * 2
        deadline = time.monotonic() + 60
        while received == 1 and time.monotonic() < deadline:
            yield b"nothing"
        assert received > 1  # long before the sources end
        yield photo

    for _ in runner.stream(sources(), batch_size=2, max_wait=None):
        received += 1
    assert received >= 5


def test_an_error_of_the_generator_is_its_callers(runner: Runner, photo: Path) -> None:
    def broken() -> Iterator[Path]:
        yield from [photo] * 5
        raise LookupError("the list ends here")

    threads = len(os.listdir("/proc/self/task"))
    with pytest.raises(LookupError, match="the list ends here"):
        list(runner.stream(broken()))
    deadline = time.monotonic() + 60
    while len(os.listdir("/proc/self/task")) > threads:  # the one that ran the generator is ending
        assert time.monotonic() < deadline


def test_streams_at_the_same_time(runner: Runner, photo: Path) -> None:
    one, two = runner.stream([photo] * 9), runner.stream([photo] * 9, outputs="logits")
    pairs = list(zip(one, two, strict=True))
    assert len(pairs) == 9
    assert all(a.predictions[0].index == int(b.logits.argmax()) for a, b in pairs)


def test_an_abandoned_stream_is_no_burden(runner: Runner, photo: Path) -> None:
    for taken in range(12):
        stream = runner.stream([photo] * 40, batch_size=3)
        list(islice(stream, taken))
        del stream
    runner.stream([photo])  # never begun
    assert len(runner.classify([photo])) == 1


def test_faulty_options_are_named(runner: Runner) -> None:
    for options in (
        {"batch_size": -1}, {"workers": -2}, {"top_k": 0}, {"outputs": "pixels"}, {"max_wait": -1}, {"max_wait": math.nan},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(options))):
            runner.stream([], **options)
    with pytest.raises(TypeError, match="max_wait: expected a number, or None, got str '1'"):
        runner.stream([], max_wait="1")


ENDLESS = """
import itertools, sys
from swsl.deploy.runner import Runner
stream = Runner(sys.argv[1]).stream(itertools.repeat(sys.argv[2]), batch_size=16)
try:
    for result in stream:
        print("streaming", flush=True)
finally:
    stream.close()
    print("clean", flush=True)
"""


def test_ctrl_c(path: Path, photo: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(path), str(photo)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=subprocess_environment(), cwd=tmp_path,
    )  # fmt: skip
    for _ in range(40):
        assert process.stdout.readline() == "streaming\n"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert out.endswith("clean\n")
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT  # as Python ends itself


WAITING = """
import sys, threading
from swsl.deploy.runner import Runner
def sources():
    yield sys.argv[2]
    print("waiting", flush=True)
    if sys.argv[3] == "idle":
        threading.Event().wait()
    while True:  # takes and gives back the GIL at any time
        yield sys.argv[2]
stream = Runner(sys.argv[1], batch_size=1).stream(sources())
next(stream)
"""


@pytest.mark.parametrize("how", ["idle", "busy"])
def test_the_interpreter_ends_while_a_source_is_awaited(path: Path, photo: Path, how: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WAITING, str(path), str(photo), how],
        capture_output=True, text=True, env=subprocess_environment(), timeout=120,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout.strip("\n"), ended.stderr) == (0, "waiting", "")
