"""The images of a training run that cannot be read: named once each, and bearable up to a share."""

from __future__ import annotations

from collections.abc import Iterable

from ..evaluation.class_folders import check_unreadable
from ..system.progress import say
from .distributed import Processes


class Unreadable:
    """Paths and errors. Each of several processes meets its own, and the first one names all of them after `merge`.

    Args:
        images: how many there are.
        allowed: the share of them that may be unreadable.
        processes: those that train.
        errors: of an earlier part of the run, by path, which were named there.
    """

    def __init__(self, images: int, allowed: float, processes: Processes, errors: dict[str, str]) -> None:
        self._images, self._allowed, self._processes = images, allowed, processes
        self._errors, self._named = dict(errors), len(errors)

    def add(self, found: Iterable[tuple[str, str]]) -> None:
        """Paths with their errors, known ones too. Raises DataError where they are too many."""
        for path, error in found:
            self._errors.setdefault(path, error)
        if self._processes.world == 1:
            self._name()
        self._check()

    def merge(self) -> None:
        """Take over those of the other processes; collective. Raises DataError where they are too many."""
        self._errors |= self.gathered()
        self._name()
        self._check()

    def gathered(self) -> dict[str, str]:
        """Those of all processes, errors by path; collective."""
        parts = self._processes.gather(self._errors)
        return {path: error for part in parts for path, error in part.items()}

    def _name(self) -> None:
        if self._processes.first:
            for error in list(self._errors.values())[self._named :]:
                say(f"swsl: skipped: {error}")
        self._named = len(self._errors)

    def _check(self) -> None:
        check_unreadable(list(self._errors.values()), self._images, self._allowed)
