"""What is given, checked where it is given: an error names the argument, what it got, and what to do."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def check_at_least(least: int, **arguments: int) -> None:
    for name, value in arguments.items():
        if value < least:
            raise ValueError(f"{name}: expected {least} or more, got {value}")


def check_types(expected: str, kind: Any, **arguments: object) -> None:
    """In pybind11's own words this would be a page of signatures."""
    for name, value in arguments.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name}: expected {expected}, got {shown(value)}")


def check_frozen_path(model: object) -> None:
    """That ``model`` may be the path of a frozen module."""
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(
            f"model: expected the path of a file that `swsl export` wrote, got {shown(model)}; swsl.EagerRunner(model) runs a "
            'swsl.ResNeXt, and swsl.export_model(model, "model.pt") writes such a file of it'
        )


def shown(value: object) -> str:
    """The kind of a value and the beginning of it, in one line."""
    return f"{type(value).__name__} {' '.join(repr(value).split())[:80]}"


def known_options(function: F) -> F:
    """A function that calls an option which it does not have by its name, and names those that it has."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]
    any_other = any(p.kind is p.VAR_KEYWORD for p in parameters)

    @wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        unknown = next((name for name in options if name not in names), None)
        if unknown is not None and not any_other:
            what = type(arguments[0]).__name__ if function.__name__ == "__init__" else function.__name__
            near = difflib.get_close_matches(unknown, names, 1)
            advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
            raise TypeError(f"{unknown}: {what} has no such option; {advice}")
        return function(*arguments, **options)

    return cast(F, checked)
