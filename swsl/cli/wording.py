"""What the library says, in the words of the command line."""

from __future__ import annotations

import argparse
import re


def as_typed(text: object, arguments: argparse.Namespace) -> str:
    """A message in which the library's names of arguments are the options of the command that was given.

    The library's messages begin with the argument that is wrong (``epochs: …``), and name others as ``weights=FILE`` or, where
    that is no English word, as ``batch_size``. Names of files, which a message may begin with too, stay as they are.
    """
    actions = {action.dest: action for action in arguments.parser._actions}
    names = "|".join(map(re.escape, actions))
    first, colon, rest = str(text).partition(": ")
    if colon and first in actions and ("_" in first or _is_typed(actions[first], arguments)):
        first = _flag(actions[first])

    def given(found: re.Match[str]) -> str:
        return _given(actions[found[1]], found[2].strip("\"'"))

    def alone(found: re.Match[str]) -> str:
        return _flag(actions[found[0]]) if "_" in found[0] else found[0]

    message = re.sub(rf"(?<=[\s(])({names})=(\"[^\"]*\"|'[^']*'|[^\s,;)]*)", given, first + colon + rest)
    return re.sub(rf"(?<=[\s(])({names})(?![\w/=-]|\.\w)", alone, message)


def _is_typed(action: argparse.Action, arguments: argparse.Namespace) -> bool:
    value = getattr(arguments, action.dest, action.default)
    return bool(action.option_strings) and value != action.default and str(value) != action.dest


def _flag(action: argparse.Action) -> str:
    """As `swsl COMMAND --help` has it."""
    return max(action.option_strings, key=len, default=str(action.metavar))


def _given(action: argparse.Action, value: str) -> str:
    """What is typed where the library's argument has this value."""
    if value == "None" or (action.nargs == 0 and value != str(action.const)):
        return f"without {_flag(action)}"
    return _flag(action) if action.nargs == 0 or not value else f"{_flag(action)} {value}"
