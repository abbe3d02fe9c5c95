"""Completion of the command line in shells, by shtab."""

from __future__ import annotations

import argparse
from typing import Any

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
    from ..variants import VARIANTS

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _describe(command, shtab)
        words = str(action.metavar).replace(".", "|").split("|")
        if words == ["NAME"]:
            action.choices = list(VARIANTS)
        elif words == ["DIR"]:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif {"FILE", "PATH", "DATA"} & set(words):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
