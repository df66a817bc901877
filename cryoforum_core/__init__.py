"""cryoforum: orientations of cryo-EM particles, with calibrated errors.

The names of ``__all__`` are what a script needs; they are imported when they are first used, so that importing the
package is quick and loads no torch::

    import cryoforum_core as cf
    run = cf.simulate(cf.SimulateConfig(out="set", n_particles=1000))
    print(run.read_summary())

The job ``report`` has the name of a package; it is ``cryoforum_core.jobs.report``.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(["SimulateConfig", "TrainConfig", "PredictConfig", "SelectConfig", "ReconstructConfig",
                     "EvaluateConfig", "ReportConfig", "DoctorConfig", "AbInitioConfig", "BenchmarkConfig"], "config"),
    **dict.fromkeys(["simulate", "ab_initio", "train", "predict", "select", "reconstruct", "evaluate", "doctor",
                     "benchmark"], "jobs"),
    **dict.fromkeys(["InputError", "Interrupted", "NotConverged"], "errors"),
    "RunDirectory": "run_directory",
    **dict.fromkeys(["Particles", "load_particles"], "particles.dataset"),
    "Poses": "geometry.poses",
    "OrientationPosterior": "geometry.bingham",
    "CTFParameters": "imaging.ctf",
    "read_map": "mrc",
    "write_map": "mrc",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - all of them are names


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"cryoforum_core has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
