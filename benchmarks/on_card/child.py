"""The process that does the cases, told one at a time: it may crash or hang, and no other does."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .cases import Case, all_cases

Work = Callable[[Any], dict[str, Any]]


class Told:
    """What a case says while it is under way, to the process that watches."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def __call__(self, **message: Any) -> None:
        """Whatever happens next, this has been said."""
        data = (json.dumps(message, default=str) + "\n").encode()
        while data:
            data = data[os.write(self._pipe, data) :]


def function_of(case: Case) -> Work:
    module, _, name = case.function.partition(".")
    return partial(getattr(importlib.import_module(f".{module}", __package__), name), **case.arguments)


def serve(cases: list[Case], make: Callable[[], Any], find: Callable[[Case], Work], pipe: int) -> int:
    """Does the cases whose keys come as lines on standard input.

    Args:
        cases: those it may be told of.
        make: makes the bench, when the first case comes.
        find: what a case calls with it.
        pipe: where messages go.

    Returns:
        The exit status: 3 where the device can no longer be used.
    """
    tell = Told(pipe)
    known = {case.key: case for case in cases}
    bench: Any = None
    for line in sys.stdin:
        case = known[line.rstrip("\n")]
        start = time.monotonic()
        end: dict[str, Any] = {}
        try:
            if bench is None:
                bench = make()
            bench.begin(lambda **note: tell(note=note))
            end["result"] = find(case)(bench)
        except BaseException as error:  # SystemExit of a library among them: the next case is no worse for it
            end["error"] = "".join(traceback.format_exception(error))
            end["message"] = f"{type(error).__name__}: {error}"
        sound = bench is None or bench.sound()
        tell(end=end | {"seconds": time.monotonic() - start, "sound": sound})
        if not sound:
            return 3
    return 0


def main(arguments: list[str]) -> int:
    device, work, pipe = arguments

    def make() -> Any:
        from .bench import make_bench

        return make_bench(device, Path(work))

    return serve(all_cases(), make, function_of, int(pipe))
