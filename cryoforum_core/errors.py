"""Exceptions that end a job without a reliable result: bad input, interrupted, not converged."""

from collections.abc import Iterable


class InputError(Exception):
    """The input breaks a rule. Each problem is one sentence or two: the rule, what was found, the remedy.

    A job collects every problem of one input before it raises, so that a user repairs a file once.
    The command line prints the problems and exits with code 2.
    """

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Interrupted(Exception):
    """The user stopped the job; its work so far is saved, and ``--resume`` continues. Exit code 130."""


class NotConverged(Exception):
    """The job ran to its end and wrote its files, but the data did not determine the result. Exit code 3.

    The message gives the evidence; the run's report shows the figures.
    """
