"""One line on stderr that says how far long work has come."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """A context manager that redraws a line at most ten times a second, and only on a terminal.

        with Progress("images", total=len(paths)) as progress:
            for path in paths:
                progress.advance()

    Args:
        unit: what is counted; "bytes" is shown in MB.
        total: how many are to come, where that is known.
        enabled: False shows nothing.
    """

    def __init__(self, unit: str, total: int | None = None, *, enabled: bool = True) -> None:
        self.unit, self.total = unit, total
        self.done = self.errors = 0
        self._enabled = enabled and sys.stderr.isatty()
        self._start = self._drawn = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._enabled:
            self._draw()
            print(file=sys.stderr)

    def advance(self, count: int = 1, *, errors: int = 0) -> None:
        self.done += count
        self.errors += errors
        if self._enabled and time.monotonic() - self._drawn >= 0.1:
            self._draw()

    def message(self, text: str) -> None:
        """Print a line of its own, above the progress line."""
        print(("\r\033[K" if self._enabled else "") + text, file=sys.stderr)

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        rate = self.done / max(self._drawn - self._start, 1e-9)
        scale, unit = (1e6, "MB") if self.unit == "bytes" else (1, self.unit)
        parts = [
            f"{self.done / scale:,.0f}"
            + (f" of {self.total / scale:,.0f}" if self.total else "")
            + f" {unit}"
        ]
        parts.append(f"{rate / scale:,.1f} {unit}/s")
        if self.errors:
            parts.append(f"{self.errors:,} failed")
        if self.total and rate:
            minutes, seconds = divmod(round(max(self.total - self.done, 0) / rate), 60)
            parts.append(f"{minutes:d}:{seconds:02d} left")
        print("\r\033[K" + ", ".join(parts), end="", file=sys.stderr, flush=True)
