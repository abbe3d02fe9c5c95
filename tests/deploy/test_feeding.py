"""Live sources: iterators whose next source is long in coming."""

from __future__ import annotations

import contextvars
import gc
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import MakeRunner

from swsl.deploy.feeding import chunks


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_result_comes_before_the_next_source(make_runner: MakeRunner, photo: Path, batch_size: int) -> None:
    received = threading.Semaphore(0)

    def camera() -> Iterator[object]:
        for burst in ([photo], [b"nothing"], [photo, photo, b"nothing"], [photo] * 5, [photo]):
            yield from burst
            for _ in burst:
                assert received.acquire(timeout=60), "the result of what was yielded has not come"

    results = []
    for result in make_runner(batch_size).stream(camera(), top_k=1):
        results.append(result)
        received.release()
    assert [len(result.predictions) for result in results] == [1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    assert [result.error is None for result in results] == [bool(result.predictions) for result in results]


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_an_error_of_the_iterator_comes_after_the_results_before_it(
    make_runner: MakeRunner, photo: Path, error: type[BaseException]
) -> None:
    def broken() -> Iterator[Path]:
        yield from [photo] * 3
        raise error("the camera is gone")

    stream = make_runner(2).stream(broken())
    for _ in range(3):
        assert next(stream).predictions
    with pytest.raises(error, match="the camera is gone"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_closing_waits_for_no_source_and_keeps_nothing(make_runner: MakeRunner, photo: Path) -> None:
    runner, go_on, ended = make_runner(2), threading.Event(), threading.Event()

    def camera() -> Iterator[Path]:
        try:
            yield photo
            go_on.wait(60)
            yield photo
            pytest.fail("taken from after the end")
        finally:
            ended.set()

    stream = runner.stream(camera())
    next(stream)
    stream.close()
    gone = weakref.ref(runner)
    del runner, stream
    gc.collect()
    assert gone() is None
    assert not go_on.is_set()
    go_on.set()
    assert ended.wait(60)  # the thread has dropped its iterator


def test_which_thread_the_sources_are_taken_on(make_runner: MakeRunner, photo: Path) -> None:
    runner, caller = make_runner(2), threading.get_ident()
    who = contextvars.ContextVar("who", default="nobody")
    threads: list[int] = []

    def generator() -> Iterator[Path]:
        for _ in range(3):
            threads.append(threading.get_ident())
            assert who.get() == "the caller"
            yield photo

    class Photos(Sequence):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, place: int) -> Path:
            threads.append(threading.get_ident())
            return [photo, photo, photo][place]

    who.set("the caller")
    assert len(list(runner.stream(generator()))) == 3
    assert len(set(threads)) == 1
    assert caller not in threads
    for sources, options in ((Photos(), {}), (generator(), {"max_wait": None})):
        threads.clear()
        assert len(list(runner.stream(sources, **options))) == 3
        assert set(threads) == {caller}


def test_chunks_are_full_unless_sources_are_live() -> None:
    def slow(pauses: bool = True) -> Iterator[int]:
        for i in range(7):
            yield i
            time.sleep(0.02 * pauses)

    assert list(chunks(slow(), 3, None)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunks(list(range(7)), 3, 0.0)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunks(slow(), 3, 60)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunks(slow(pauses=False), 3, float("inf"))) == [[0, 1, 2], [3, 4, 5], [6]]
    live = list(chunks(slow(), 3, 0.001))  # in how many depends on the machine
    assert [number for chunk in live for number in chunk] == list(range(7))
    assert list(chunks(iter([]), 3, 1)) == []
    assert list(chunks(iter([None, None]), 3, 1)) == [[None, None]]
    with pytest.raises(ValueError, match="max_wait: expected seconds, 0 or more, or None, got -1"):
        next(chunks([], 3, -1))
