"""Live sources: what an iterator yields, at the pace at which it comes, taken by a thread of its own."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

S = TypeVar("S")
T = TypeVar("T")

MAX_WAIT = 0.01
"""Seconds without a new source after which the images that are there are computed."""


def is_live(sources: Iterable[Any], max_wait: float | None) -> bool:
    """Whether a batch may have to go before it is full: the next source of a list is never long in coming.

    Raises:
        ValueError: ``max_wait`` is neither None nor a number of 0 or more.
    """
    if max_wait is not None and not max_wait >= 0:
        raise ValueError(f"max_wait: expected seconds, 0 or more, or None, got {max_wait!r}")
    return max_wait is not None and not isinstance(sources, Sequence)


class End(NamedTuple):
    """Comes after the last of what the sources were made into."""

    error: BaseException | None
    """What their iterator raised."""


class Feeder(Generic[T]):
    """Takes sources on a thread of its own, so that one that is long in coming holds up nobody.

    `close` must be called in the end. It does not wait for an iterator that is waiting itself: its thread ends when the
    next source comes, which is dropped, and it does not keep the interpreter from ending.

    Args:
        sources: used by no other thread meanwhile.
        ahead: how many may be taken and not yet given back by `give_room`.
        make: called with each source on the thread; what it returns comes out of `get`.
        finish: called on the thread after the last source, or the iterator's error.
    """

    def __init__(
        self,
        sources: Iterator[S],
        ahead: int,
        make: Callable[[S], T],
        finish: Callable[[], object] = lambda: None,
    ) -> None:
        # SimpleQueue alone: at the interpreter's end this thread may stop anywhere, and must hold no lock then.
        self._made: SimpleQueue[T | End] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        self._make: Callable[[Any], T] | None = make
        self._finish = finish
        self._process = os.getpid()
        self.give_room(ahead)
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._run, sources), name="swsl sources", daemon=True).start()

    def get(self, timeout: float | None = None) -> T | End:
        """What the next source was made into, or the end.

        Raises:
            queue.Empty: nothing has come for ``timeout`` seconds.
            RuntimeError: this process was forked off the one that has the thread.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                "this stream was begun before the process forked, and its thread stayed behind; "
                "make the runner in the process that uses it"
            )
        return self._made.get(timeout=timeout)

    def give_room(self, count: int = 1) -> None:
        for _ in range(count):
            self._room.put(None)

    def close(self) -> None:
        self._make = None  # the thread may wait for long yet, and would keep what this refers to
        self._finish = lambda: None
        self._room.put(None)

    def _run(self, sources: Iterator[S]) -> None:
        error = None
        try:
            while self._take(sources):
                pass
        except BaseException as raised:  # whatever it is, it is the consumer's
            error = raised
        self._finish()
        self._made.put(End(error))
        del error  # which refers to this very frame

    def _take(self, sources: Iterator[S]) -> bool:
        self._room.get()
        if not self._make:
            return False
        try:
            source = next(sources)
        except StopIteration:
            return False
        make = self._make
        if make is not None:
            self._made.put(make(source))
        return make is not None


def chunks(sources: Iterable[S], size: int, max_wait: float | None) -> Generator[list[S], None, None]:
    """Lists of ``size`` sources; a shorter one at the end, and where no source has come for ``max_wait`` seconds.

    They are taken from as far as the next list needs. An error of their iterator is raised after the sources before it.
    """
    if not is_live(sources, max_wait):
        iterator = iter(sources)
        while chunk := list(islice(iterator, size)):
            yield chunk
        return
    timeout = min(max_wait or 0, threading.TIMEOUT_MAX)
    feeder: Feeder[tuple[S]] = Feeder(iter(sources), size, lambda source: (source,))
    try:
        end = None
        while end is None:
            chunk = []
            while len(chunk) < size and end is None:
                try:
                    made = feeder.get(timeout if chunk else None)
                except Empty:
                    break
                if isinstance(made, End):
                    end = made
                else:
                    chunk.append(made[0])
            if chunk:
                yield chunk
                feeder.give_room(len(chunk))
        if end.error:
            raise end.error
    finally:
        feeder.close()
