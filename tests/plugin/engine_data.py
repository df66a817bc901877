"""Simulated data made by the engine's own command, and the errors of orientations against its known truth."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
from emtable import Table
from scipy.spatial.transform import Rotation


def engine(job, out, **options):
    """A job of the engine, on the CPU, in its environment; returns the run directory."""
    flags = [word for name, value in options.items()
             for word in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([os.environ["CRYOFORUM_PYTHON"], "-m", "cryoforum_core", job, "--out", str(out), "--device", "cpu",
                    *flags], check=True, capture_output=True, text=True, env=environment)
    return Path(out)


def engine_defaults(config):
    """What the engine itself would choose: option -> value, of a class of its config.py."""
    code = (f"from cryoforum_core.config import {config}; "
            f"print({config}(particles='p', out='o').model_dump_json())")
    return json.loads(subprocess.run([os.environ["CRYOFORUM_PYTHON"], "-c", code], check=True, capture_output=True,
                                     text=True, cwd="/").stdout)


def engine_options(config):
    """The options of a class of the engine's config.py: name -> the choices that it has, an empty set where it takes
    other values."""
    code = f"import json; from cryoforum_core.config import {config}; print(json.dumps({config}.model_json_schema()))"
    schema = json.loads(subprocess.run([os.environ["CRYOFORUM_PYTHON"], "-c", code], check=True, capture_output=True,
                                       text=True, cwd="/").stdout)
    return {name: {choice for kind in [field, *field.get("anyOf", ())] for choice in kind.get("enum", ())}
            for name, field in schema["properties"].items()}


def simulate(out, **options):
    """``cryoforum simulate``; returns the run directory."""
    return engine("simulate", out, **options)


def import_star(launch, star, pixel_size, label="import"):
    """Scipion's import of a RELION STAR file."""
    from pwem.protocols import ProtImportParticles

    return launch(ProtImportParticles, label, importFrom=ProtImportParticles.IMPORT_FROM_RELION, starFile=str(star),
                  samplingRate=pixel_size, voltage=300, sphericalAberration=2.7, amplitudeContrast=0.1,
                  magnification=50000)


def star_rows(path, table="particles"):
    return [row._asdict() for row in Table(fileName=str(path), tableName=table)]


def relion_matrices(rows):
    """(n, 3, 3) RELION's A of rows with rlnAngleRot, Tilt, Psi."""
    angles_deg = [[row["rlnAngleRot"], row["rlnAngleTilt"], row["rlnAnglePsi"]] for row in rows]
    return Rotation.from_euler("ZYZ", angles_deg, degrees=True).inv().as_matrix()


def errors_deg(particles, truth_rows):
    """Angle (n,) between each particle's orientation in a Scipion set and the truth; truth_rows: dict id -> row."""
    ids, matrices = [], []
    for particle in particles.iterItems():
        ids.append(particle.getObjId())
        matrices.append(particle.getTransform().getMatrix()[:3, :3].T)
    truth = relion_matrices([truth_rows[i] for i in ids])
    return np.rad2deg((Rotation.from_matrix(np.array(matrices)) * Rotation.from_matrix(truth).inv()).magnitude())


def map_correlation(path, truth_path):
    """Correlation of two maps inside a sphere of 40 % of the box."""
    import mrcfile

    with mrcfile.open(path, permissive=True) as one, mrcfile.open(truth_path, permissive=True) as other:
        a, b = np.array(one.data), np.array(other.data)
    axis = np.arange(len(a)) - len(a) // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    inside = x**2 + y**2 + z**2 < (0.4 * len(a)) ** 2
    return float(np.corrcoef(a[inside], b[inside])[0, 1])
