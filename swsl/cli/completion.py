"""Completion of the command line in shells, by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import combinations
from typing import Any, get_args

SHELLS = ("bash", "zsh", "fish")


class PrintCompletion(argparse.Action):
    """Prints a shell's script that completes the parser's commands, options and files, and ends the process."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, shell: Any, *_: object) -> None:
        try:
            import shtab
        except ImportError:
            parser.error(f"{'/'.join(self.option_strings)}: needs shtab: pip install shtab")
        _describe(parser, shtab)
        print(shtab.complete(parser, shell))
        parser.exit()


def _describe(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """What shtab is to offer for values: it knows choices, but not what our metavars mean."""
    from ..prediction import Output
    from ..variants import VARIANTS

    names = get_args(Output)
    several = [",".join(some) for count in range(1, len(names) + 1) for some in combinations(names, count)]
    choices = {"NAME": list(VARIANTS), "NAMES": several, "DEVICE": ["auto", "cpu", "cuda"]}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _describe(command, shtab)
        words = str(action.metavar).split("|")
        if words == ["NAME", "FILE"]:
            action.complete = _either(list(VARIANTS))  # type: ignore[attr-defined]
        elif words[0] in choices:
            action.choices = choices[words[0]]
        elif words == ["DIR"]:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif {"FILE", "PATH", "DATA"} & {word.split(".")[0] for word in words}:
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _either(names: Sequence[str]) -> dict[str, Any]:
    """In shtab's terms: one of these names, or a file."""
    function, words = "_swsl_name_or_file", " ".join(names)
    return {
        "bash": function,
        "zsh": function,
        "fish": f"{words} (__fish_complete_path (commandline -ct))",
        "preamble": {
            "bash": f'{function}() {{\n  compgen -W \'{words}\' -- "$1"\n  compgen -f -- "$1"\n}}',
            "zsh": f"{function}() {{\n  _alternative 'variants:variant:({words})' 'files:file:_files'\n}}",
        },
    }
