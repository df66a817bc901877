"""The command line ``cryoforum JOB --out DIRECTORY ...``: the configs of config.py, one field, one flag.

Exit codes: 0 done, 1 an error of the program (with traceback), 2 bad input (the problems, no traceback), 3 not
converged, 130 interrupted. Nothing here imports torch before the arguments are read, so that ``--help`` is quick.
"""

import contextlib
import itertools
import logging
import os
import shlex
import signal
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path

import tyro
from pydantic import BaseModel, ValidationError

from . import __version__, config
from .errors import InputError, Interrupted, NotConverged
from .interruption import stop_between_steps, stop_if_asked

logger = logging.getLogger("cryoforum")

JOBS: dict[str, type[config.JobConfig]] = {
    "simulate": config.SimulateConfig,
    "ab-initio": config.AbInitioConfig,
    "train": config.TrainConfig,
    "predict": config.PredictConfig,
    "select": config.SelectConfig,
    "reconstruct": config.ReconstructConfig,
    "evaluate": config.EvaluateConfig,
    "report": config.ReportConfig,
    "benchmark": config.BenchmarkConfig,
    "doctor": config.DoctorConfig,
}

EXIT_BAD_INPUT, EXIT_NOT_CONVERGED, EXIT_INTERRUPTED = 2, 3, 130
_STOPPING = "\nstopping at the end of this step; press Ctrl-C again to stop at once\n"

_OVERVIEW = """\
cryoforum {version}: orientations of cryo-EM particles with calibrated errors, and removal of junk in 3D

usage: cryoforum JOB --out DIRECTORY [options]

{jobs}

cryoforum JOB --help lists the options of a job. A typical workflow:

  cryoforum simulate --out set --n-particles 2000 --junk-fraction 0.15
  cryoforum train    --out network --particles set/particles.star --reference set/map.mrc --max-minutes 5
  cryoforum predict  --out poses --particles set/particles.star --model network
  cryoforum select   --out clean --run poses --keep-fraction 0.8
  cryoforum evaluate --out errors --particles clean/selected.star --truth set/truth.star
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``cryoforum`` and ``python -m cryoforum_core``; ends the process with an exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # before PyTorch is loaded: threads that spin while they wait slow each other down on busy cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(), end="")
        sys.exit(0)
    if arguments[0] == "--version":
        print(__version__)
        sys.exit(0)
    try:
        parsed = parse(arguments)
    except InputError as error:
        _fail(error)
    sys.exit(_run(parsed, arguments))


def parse(arguments: Sequence[str]) -> config.JobConfig:
    """The configuration given by the arguments. Raises InputError where a value breaks a rule.

    Prints and exits for ``--help`` and for unknown or missing flags (exit code 2), like any command line.
    """
    job, *options = arguments
    if job not in JOBS:
        raise InputError(f"The first argument must be a job; {job!r} is not one. Jobs: {', '.join(JOBS)}.")
    model = JOBS[job]
    values = tyro.cli(_Flags, args=options, prog=f"cryoforum {job}", description=model.__doc__,
                      registry=_registry(model))
    try:
        return model(**values)
    except ValidationError as error:
        raise InputError(_sentence(problem) for problem in error.errors()) from None


class _Flags(dict):
    """The values of the flags of a job, not yet validated; ``_registry`` defines the flags."""


def _registry(model: type[config.JobConfig]) -> tyro.constructors.ConstructorRegistry:
    """Flags for the fields of ``model``: those of the job first, those of all jobs last, then groups, ``--group.field``.
    Pydantic validates them later."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.struct_rule
    def _(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
        flags_of = model if info.type is _Flags else info.type
        if not _is_group(flags_of):
            return None
        names = [name for name in flags_of.model_fields if name != "job"]
        names.sort(key=lambda name: _rank(flags_of, name))
        return tyro.constructors.StructConstructorSpec(dict, tuple(_flag(flags_of, name) for name in names))

    return registry


def _is_group(annotation) -> bool:
    """Whether a field, or the job itself, has options of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _rank(model: type[BaseModel], name: str) -> int:
    if model.model_fields[name].is_required():
        return 0
    if name in config.JobConfig.model_fields:
        return 3
    return 2 if name in config.ImageInputConfig.model_fields else 1


def _flag(model: type[BaseModel], name: str) -> tyro.constructors.StructFieldSpec:
    field = model.model_fields[name]
    if _is_group(field.annotation):
        return tyro.constructors.StructFieldSpec(name, field.annotation, field.default, helptext=field.description)
    # pydantic removes the constraints from the annotation; they are checked when the model is created
    annotation, is_optional = _without_none(field.annotation)
    hints = {}
    if is_optional and field.default is None:
        hints = {"help_behavior_hint": ""}
    elif field.default == ():
        hints = {"help_behavior_hint": "(default: nothing)"}
    if (field.json_schema_extra or {}).get("positional"):
        return tyro.constructors.StructFieldSpec(name, tyro.conf.Positional[field.annotation], tyro.MISSING,
                                                 helptext=" ".join(field.description.split()))
    metavar = {Path: "PATH", str: "TEXT", int: "INT", float: "NUMBER"}.get(annotation)
    if is_optional and typing.get_origin(annotation) in (typing.Literal, tuple):
        # leaving the flag out is how to choose nothing
        is_list = typing.get_origin(annotation) is tuple
        choices = "{" + ",".join(typing.get_args(typing.get_args(annotation)[0] if is_list else annotation)) + "}"
        metavar = f"[{choices} ...]" if is_list else choices
    annotated = typing.Annotated[field.annotation, tyro.conf.arg(metavar=metavar, **hints)]
    default = tyro.MISSING if field.is_required() else field.default
    description = " ".join((field.description or "").split())
    return tyro.constructors.StructFieldSpec(name, annotated, default, helptext=description)


def _without_none(annotation) -> tuple[object, bool]:
    """``Path | None`` -> (Path, True); ``Path`` -> (Path, False)."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation, False
    members = [member for member in typing.get_args(annotation) if member is not type(None)]
    first = typing.get_args(members[0])[0] if typing.get_origin(members[0]) is typing.Annotated else members[0]
    return (first if len(members) == 1 else annotation), True


def _sentence(problem: dict) -> str:
    """A validation error of pydantic as a sentence."""
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message[0].upper() + message[1:] + "."
    # after the name there may be the place in a list
    flag = "--" + ".".join(itertools.takewhile(lambda part: isinstance(part, str), problem["loc"])).replace("_", "-")
    rule = message.replace("Input should be", "must be")
    return f"{flag} {rule}; it is {problem['input']!r}."


def _run(parsed: config.JobConfig, arguments: Sequence[str]) -> int:
    _log_to_stdout()
    command = ["cryoforum", *arguments] + ([] if "--resume" in arguments else ["--resume"])
    hint = f"Continue with: {shlex.join(command)}"

    def end_at_once() -> None:
        # an exception could be lost in a callback, and what is being written is not under its final name yet
        with contextlib.suppress(OSError):
            os.write(2, f"\ninterrupted.\n{hint}\n".encode())
        os._exit(EXIT_INTERRUPTED)

    try:
        # queueing systems stop jobs with SIGTERM
        with stop_between_steps((signal.SIGINT, signal.SIGTERM), _STOPPING, end_at_once):
            from . import jobs

            stop_if_asked()
            getattr(jobs, parsed.job.replace("-", "_"))(parsed)
    except InputError as error:
        _fail(error)
    except NotConverged as reason:
        print(f"did not converge: {reason}", file=sys.stderr, flush=True)
        return EXIT_NOT_CONVERGED
    except (KeyboardInterrupt, Interrupted) as stop:
        print(f"\ninterrupted. {stop or ''}\n{hint}", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    return 0


def _log_to_stdout() -> None:
    """Log lines on standard output, next to the progress."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Format())
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _Format(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        return prefix + super().format(record)


def _fail(error: InputError) -> typing.NoReturn:
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def _overview() -> str:
    width = max(map(len, JOBS))
    lines = (f"  {name:{width}}  {model.__doc__.split('.')[0]}" for name, model in JOBS.items())
    return _OVERVIEW.format(version=__version__, jobs="\n".join(lines))


