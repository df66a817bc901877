"""The tests of the engine run in its environment, those in tests/plugin in Scipion's; each sees its own part only."""

import importlib.util
import signal

HERE_IS_SCIPION = importlib.util.find_spec("pyworkflow") is not None

if not HERE_IS_SCIPION:
    collect_ignore = ["plugin"]


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script that starts tests in the background has it so
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not HERE_IS_SCIPION:  # Scipion's own packages warn a lot
        config.addinivalue_line("filterwarnings", "error")
