"""Collects all problems of an input, so that users see them at once and repair the input once."""

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

from .errors import InputError

Result = TypeVar("Result")


class Problems:
    """The problems found so far in one input. Leaving the ``with`` block raises one InputError with all of them::

        with Problems() as problems:
            table = problems.attempt(read_table, path)
            if not config.out:
                problems.append("...")

    An exception that ends the block goes through as it is. The same problem found twice is told once.
    """

    def __init__(self) -> None:
        self._found: list[str] = []

    def attempt(self, read: Callable[..., Result], *arguments, **keywords) -> Result | None:
        """``read(*arguments, **keywords)``; where it raises InputError, None, and its problems are kept."""
        try:
            return read(*arguments, **keywords)
        except InputError as error:
            self.extend(error.problems)
            return None

    def append(self, problem: str) -> None:
        self._found.append(problem)

    def extend(self, problems: Iterable[str]) -> None:
        self._found.extend(problems)

    def raise_if_any(self) -> None:
        """Raises InputError where there are problems: what follows needs everything that was read."""
        if self._found:
            raise InputError(dict.fromkeys(self._found))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.raise_if_any()
