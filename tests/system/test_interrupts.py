"""Signals that wait."""

from __future__ import annotations

import signal

import pytest

from swsl.system.interrupts import held_back


def test_signals_wait_for_what_they_would_tear() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), held_back():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
