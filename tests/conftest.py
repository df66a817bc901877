"""The tests of the engine run in its environment, those in tests/plugin in Scipion's; each sees its own part only."""

import importlib
import importlib.util
import signal

import pytest

HERE_IS_SCIPION = importlib.util.find_spec("pyworkflow") is not None
# packages whose annotations tell the shapes of tensors
SHAPES_CHECKED = [f"cryoforum_core.{name}" for name in (
    "geometry", "imaging", "matching", "particles", "model", "training", "uncertainty", "junk", "results", "reconstruction",
    "selection", "evaluation", "states", "inference", "ab_initio")]


def check_shapes():
    """Types and shapes are checked at every call, in this process only: programs that tests start, and users, run the plain
    functions. To be called before the first import of the package."""
    # libraries first: those that a checked module is the first to import are compiled anew, which takes seconds
    for library in ("torch", "roma", "torch_ctf"):
        importlib.import_module(library)
    from jaxtyping import install_import_hook
    # the tower: where a float is wanted an int will do
    install_import_hook(SHAPES_CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


if not HERE_IS_SCIPION:
    collect_ignore = ["plugin"]
    check_shapes()


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script that starts tests in the background has it so
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not HERE_IS_SCIPION:  # Scipion's own packages warn a lot
        config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(scope="session", autouse=True)
def _states_from_one_start():
    """Every job that matches looks for a second state: here from one random start, not from three."""
    if HERE_IS_SCIPION:
        yield
        return
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(importlib.import_module("cryoforum_core.states.two_states"), "_STARTS", 1)
        yield
