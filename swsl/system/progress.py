"""Lines on stderr that say how far long work has come: redrawn in place on a terminal, else one every ten seconds.

They come by the clock, from a thread: a step may be longer than that. So what is measured must not fork.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from .torchrun import is_first

_EVERY_S = 10.0  # where lines add up, in a log say
_WORTH_TELLING_S = 2.0
_TICK_S = 1.0


def say(text: str) -> None:
    """Print a line of its own on stderr, in place of a progress line that may be there."""
    print(("\r\033[K" if sys.stderr.isatty() else "") + text, file=sys.stderr)


class Pace:
    """How much of a work is done, counted from when this is made.

    Args:
        total: how much there is to do, where that is known.
    """

    def __init__(self, total: int | None = None) -> None:
        self.total, self.done = total, 0
        self._start = time.monotonic()

    @property
    def rate(self) -> float:
        """A second."""
        return self.done / max(time.monotonic() - self._start, 1e-9)

    @property
    def left(self) -> str:
        """The time that the rest takes at this rate; empty where that is not known."""
        if not self.total or not self.done:
            return ""
        return _clock(max(self.total - self.done, 0) / self.rate)


class Progress(Pace):
    """A context manager that shows a count: on a terminal at most ten times a second. Under torchrun the first process alone does.

        with Progress("images", total=len(paths)) as progress:
            for path in paths:
                progress.advance()

    Args:
        unit: what is counted; "bytes" is shown in MB.
        total: how many are to come, where that is known.
        enabled: False shows nothing.
        run: of the run that this is a part of, in the same unit: it is counted too, and its time left is shown instead.
    """

    def __init__(
        self, unit: str, total: int | None = None, *, enabled: bool = True, run: Pace | None = None
    ) -> None:
        super().__init__(total)
        self.unit, self.errors = unit, 0
        self.note = ""
        """Shown behind the count."""
        self._enabled = enabled and is_first()
        self._terminal = sys.stderr.isatty()
        self._run = run
        self._begun, self._drawn = False, self._start
        self._drawing = threading.Lock()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Progress:
        if self._enabled:
            self._stack.enter_context(_ticking(self._draw_if_due))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._enabled and (self._terminal or self._begun):
            self._draw()
            if self._terminal:
                print(file=sys.stderr)

    def advance(self, count: int = 1, *, errors: int = 0) -> None:
        self.done += count
        if self._run:
            self._run.done += count
        self.errors += errors
        if self._enabled:
            self._draw_if_due()

    def _draw_if_due(self) -> None:
        with self._drawing:
            if time.monotonic() - self._drawn >= (0.1 if self._terminal else _EVERY_S):
                self._draw()

    def _draw(self) -> None:
        self._begun, self._drawn = True, time.monotonic()
        scale, unit = (1e6, "MB") if self.unit == "bytes" else (1, self.unit)
        total = f" of {self.total / scale:,.0f}" if self.total else ""
        parts = [f"{self.done / scale:,.0f}{total} {unit}"]
        if self.note:
            parts.append(self.note)
        parts.append(f"{self.rate / scale:,.1f} {unit.split()[0]}/s")
        if self.errors:
            parts.append(f"{self.errors:,} failed")
        if self._run and self._run.left:
            parts.append(f"{self._run.left} left of the run")
        elif self.left and not self._run:
            parts.append(f"{self.left} left")
        _show(", ".join(parts), self._terminal)


@contextlib.contextmanager
def working(what: str, *, enabled: bool = True) -> Iterator[None]:
    """Says that ``what`` goes on, and for how long, where the block takes over two seconds. Under torchrun the first process
    alone does."""
    if not enabled or not is_first():
        yield
        return
    terminal, start = sys.stderr.isatty(), time.monotonic()
    due = start + (_WORTH_TELLING_S if terminal else _EVERY_S)

    def tell() -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            _show(f"{what}, {_clock(now - start)}", terminal)
            due = now + (0 if terminal else _EVERY_S)

    try:
        with _ticking(tell):
            yield
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _ticking(call: Callable[[], None]) -> Iterator[None]:
    """Calls it every second from a thread until the block ends."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(_TICK_S):
            call()

    thread = threading.Thread(target=repeat, name="swsl progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show(line: str, terminal: bool) -> None:
    print(
        f"\r\033[K{line}" if terminal else f"swsl: {line}",
        end="" if terminal else "\n",
        file=sys.stderr,
        flush=True,
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
