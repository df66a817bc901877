"""Ctrl-C and SIGTERM: a job stops between two steps of its work.

Python runs a signal's handler between any two instructions of the main thread. A KeyboardInterrupt raised there is lost where
that is a weakref callback or a ``__del__``: Python prints it and goes on. So the handler only notes the request, and
``stop_if_asked`` raises where an exception is sure to arrive; ``Progress`` calls it at every step.

Without ``stop_between_steps`` nothing is installed, and Ctrl-C is Python's own.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

# a plain variable: the handler may come while the main thread holds the lock of a threading.Event
_asked = False
_installed = False


@contextmanager
def stop_between_steps(signals: Sequence[int] = (signal.SIGINT,), notice: str = "",
                       end_at_once: Callable[[], None] | None = None) -> Iterator[None]:
    """Within it, the first of ``signals`` makes ``stop_asked`` true; ``notice`` is then written to standard error.

    A second Ctrl-C does not wait for the step to end: it calls ``end_at_once``, or else what Ctrl-C did before (usually
    KeyboardInterrupt). A second SIGTERM changes nothing, as queues send it more than once. A signal that is ignored
    stays ignored, except SIGTERM: shells start background jobs with SIGINT ignored, and such a job must be stoppable.
    Within another such block, and in another thread than the main one, it changes nothing.
    """
    global _asked, _installed
    if _installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals}
    before = {number: handler for number, handler in before.items()
              if number == signal.SIGTERM or handler is not signal.SIG_IGN}

    def handle(number, frame) -> None:
        global _asked
        if _asked:
            if number == signal.SIGINT:
                _end(end_at_once, before[number], number, frame)
            return
        _asked = True
        if notice:
            with suppress(OSError):  # print may be at work already: it must not be entered twice
                os.write(2, notice.encode())

    _asked, _installed = False, True
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set by Python
        _asked = _installed = False


def _end(end_at_once: Callable[[], None] | None, handler_before, number: int, frame) -> None:
    if end_at_once is not None:
        end_at_once()
    elif callable(handler_before):
        handler_before(number, frame)
    else:
        raise KeyboardInterrupt


def stop_asked() -> bool:
    """Whether a signal has come since ``stop_between_steps`` was entered."""
    return _asked


def stop_if_asked() -> None:
    """To be called between two steps. Raises KeyboardInterrupt where ``stop_asked``."""
    if _asked:
        raise KeyboardInterrupt
