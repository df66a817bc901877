"""Stopping between two steps, with signals sent to this very process."""

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest

from cryoforum_core.interruption import stop_asked, stop_between_steps, stop_if_asked
from cryoforum_core.progress import Progress

BOTH = (signal.SIGINT, signal.SIGTERM)


class Thing:
    pass


@pytest.mark.parametrize("number", BOTH)
def test_first_signal_is_noted_and_raised_at_the_next_look(number):
    with pytest.raises(KeyboardInterrupt), stop_between_steps(BOTH):
        assert not stop_asked()
        stop_if_asked()
        signal.raise_signal(number)
        assert stop_asked()
        stop_if_asked()
    assert not stop_asked()  # a later job starts afresh


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in BOTH]
    with stop_between_steps(BOTH):
        assert all(signal.getsignal(number) != handler for number, handler in zip(BOTH, before, strict=True))
    assert [signal.getsignal(number) for number in BOTH] == before


def test_nothing_is_installed_outside():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not stop_asked()


def test_signal_in_a_weakref_callback_is_not_lost():
    with pytest.raises(KeyboardInterrupt), stop_between_steps():
        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
        gc.collect()
        assert reference() is None and stop_asked()
        stop_if_asked()


def test_second_ctrl_c_does_not_wait_for_the_step():
    with stop_between_steps(BOTH):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # queues repeat it
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_second_ctrl_c_calls_what_it_was_told(capfd):
    calls = []
    with stop_between_steps(notice="stopping soon\n", end_at_once=lambda: calls.append("end")):
        signal.raise_signal(signal.SIGINT)
        assert not calls and capfd.readouterr().err == "stopping soon\n"
        signal.raise_signal(signal.SIGINT)
        assert calls == ["end"] and not capfd.readouterr().err


def test_ignored_sigint_stays_ignored_and_sigterm_still_stops():
    """As in a job that a shell starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_between_steps(BOTH):
            signal.raise_signal(signal.SIGINT)
            assert not stop_asked()
            signal.raise_signal(signal.SIGTERM)
            assert stop_asked()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_inner_block_leaves_the_request_to_the_outer_one():
    """Training, within the command line."""
    with stop_between_steps(BOTH):
        handler = signal.getsignal(signal.SIGTERM)
        with stop_between_steps():
            assert signal.getsignal(signal.SIGTERM) is handler
            signal.raise_signal(signal.SIGTERM)
        assert stop_asked() and signal.getsignal(signal.SIGTERM) is handler


def test_other_threads_install_nothing():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with stop_between_steps():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_progress_stops_at_the_step_after_the_signal(capsys):
    done = []
    with pytest.raises(KeyboardInterrupt), stop_between_steps(), Progress(10, "work", "steps") as progress:
        for step in range(10):
            done.append(step)
            if step == 3:
                signal.raise_signal(signal.SIGINT)
            progress.update()
    assert done == [0, 1, 2, 3] and progress.done == 4
    assert "took" not in capsys.readouterr().out


def test_progress_leaves_the_stop_to_a_loop_that_saves_first():
    with stop_between_steps(), Progress(2, "work", "steps", may_stop=False) as progress:
        signal.raise_signal(signal.SIGINT)
        progress.update(2)
        assert stop_asked()


# within one step, so that no look between steps can help; what follows must not run
_TWICE = """
import signal, sys
from cryoforum_core import cli
from cryoforum_core.progress import Progress

def press_twice(self, n=1, **figures):
    signal.raise_signal(signal.SIGINT)
    print("after the first", flush=True)
    signal.raise_signal(signal.SIGINT)
    print("after the second", flush=True)

Progress.update = press_twice
cli.main(sys.argv[1:])
"""


def test_second_ctrl_c_ends_the_program_at_once_with_130_and_the_hint(tmp_path):
    done = subprocess.run([sys.executable, "-c", _TWICE, "simulate", "--out", "run", "--n-particles", "100",
                           "--box-size-px", "32"], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 130
    assert "after the first" in done.stdout and "after the second" not in done.stdout
    assert "press Ctrl-C again" in done.stderr
    assert "cryoforum simulate --out run --n-particles 100 --box-size-px 32 --resume" in done.stderr
