"""What the library says, in the words of the command line."""

from __future__ import annotations

import argparse
import re


def as_typed(text: object, arguments: argparse.Namespace) -> str:
    """A message in one line, in which the library's names of arguments are the options of the command that was given.

    The library's messages begin with the argument that is wrong (``max_pixels: …``) and name others as ``weights=FILE`` or, where
    that is no English word, as ``batch_size``.
    """
    actions = {action.dest: action for action in arguments.parser._actions}
    message = " ".join(str(text).split())
    first, colon, rest = message.partition(": ")
    if colon and first in actions and _is_typed(actions[first], arguments):
        message = f"{_flag(actions[first])}: {rest}"
    names = "|".join(map(re.escape, actions))
    alone = r"(?<![\w./-])"  # no part of a path
    message = re.sub(
        rf"{alone}({names})=(\"[^\"]*\"|'[^']*'|[^\s,;)]*)", lambda m: _given(actions[m[1]], m[2]), message
    )
    return re.sub(
        rf"{alone}({names})(?![\w/=-]|\.\w)",
        lambda m: _flag(actions[m[1]]) if "_" in m[1] else m[1],
        message,
    )


def _is_typed(action: argparse.Action, arguments: argparse.Namespace) -> bool:
    value = getattr(arguments, action.dest, action.default)
    return bool(action.option_strings) and value != action.default and str(value) != action.dest


def _flag(action: argparse.Action) -> str:
    """As `swsl COMMAND --help` has it."""
    return max(action.option_strings, key=len, default=str(action.metavar))


def _given(action: argparse.Action, value: str) -> str:
    """Words of a command line that give the action this value of Python's."""
    if value == "None" or (action.nargs == 0 and value != str(action.const)):
        return f"without {_flag(action)}"
    return (
        _flag(action) if action.nargs == 0 else f"{_flag(action)} {value.strip(chr(34) + chr(39))}".rstrip()
    )
