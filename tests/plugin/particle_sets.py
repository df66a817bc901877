"""Small particle sets with known content, made through Scipion's own objects and RELION's conversion."""

import os

import mrcfile
import numpy as np
from pwem.objects import Acquisition, Coordinate, CTFModel, Particle, SetOfParticles, Transform
from pyworkflow.object import Integer, String
from scipy.spatial.transform import Rotation


def random_transforms(n, seed=0):
    """(n, 4, 4) as RELION's conversion stores them: inv([A | -s]); the z component of the translation is not zero."""
    rng = np.random.default_rng(seed)
    relion = np.tile(np.eye(4), (n, 1, 1))
    relion[:, :3, :3] = Rotation.random(n, random_state=seed).as_matrix()
    relion[:, :2, 3] = -rng.normal(scale=2, size=(n, 2))
    return np.linalg.inv(relion)


def write_stack(path, n, box=16, pixel_size_angstrom=4.0, seed=0):
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(np.random.default_rng(seed).normal(size=(n, box, box)).astype(np.float32))
        mrc.set_image_stack()
        mrc.voxel_size = pixel_size_angstrom


def make_particles(folder, n=12, aligned=True, first_id=1, disabled=(), pixel_size_angstrom=4.0, name="particles",
                   half_set=lambda i: 1 + i % 2):
    """A set on disk with everything a particle can carry; ids do not start at 1 and are not contiguous.

    half_set: the one of the i-th particle; None for a set without.
    """
    os.makedirs(folder, exist_ok=True)
    stack = os.path.join(folder, f"{name}.mrcs")
    write_stack(stack, n, pixel_size_angstrom=pixel_size_angstrom)
    filename = os.path.join(folder, f"{name}.sqlite")
    if os.path.exists(filename):
        os.remove(filename)
    particles = SetOfParticles(filename=filename)
    particles.setSamplingRate(pixel_size_angstrom)
    acquisition = Acquisition(voltage=300, sphericalAberration=2.7, amplitudeContrast=0.1, magnification=50000)
    particles.setAcquisition(acquisition)
    particles.setHasCTF(True)
    if aligned:
        particles.setAlignmentProj()
    transforms = random_transforms(n)
    for i in range(n):
        particles.append(_particle(i, first_id + 3 * i, stack, acquisition, transforms[i] if aligned else None,
                                   enabled=i not in disabled, half_set=half_set and half_set(i)))
    particles.write()
    return particles


def _particle(i, identifier, stack, acquisition, transform, enabled, half_set):
    particle = Particle()
    particle.setObjId(identifier)
    particle.setEnabled(enabled)
    particle.setLocation(i + 1, stack)
    particle.setAcquisition(acquisition)
    particle.setCTF(CTFModel(defocusU=12000.0 + 100 * i, defocusV=11800.0 + 100 * i, defocusAngle=10.0 + i))
    particle.setMicId(1 + i // 4)
    coordinate = Coordinate(x=100 + i, y=200 + i)
    coordinate.setMicId(1 + i // 4)
    coordinate.setMicName(f"mic_{1 + i // 4}.mrc")
    particle.setCoordinate(coordinate)
    if half_set is not None:
        particle._rlnRandomSubset = Integer(half_set)
    particle._rlnGroupName = String(f"group_{1 + i // 4}")
    if transform is not None:
        particle.setTransform(Transform(matrix=transform))
    return particle


def write_posterior(path, ids, transforms, pixel_size_angstrom, expected_error_deg=None, match_score=None, reason=None,
                    recentre_shift_angstrom=None, alternative_quaternion=None, **more):
    """orientation_posterior.npz as the engine writes it, for the poses of ``transforms`` (n, 4, 4).

    reason: (n,) what is junk and why; off-centre ones have a ``recentre_shift_angstrom`` (n, 2). Without reasons it is
    a run whose images were not judged. more: other arrays (n,).
    """
    n = len(ids)
    a = np.transpose(transforms[:, :3, :3], (0, 2, 1))
    shift_px = np.einsum("nij,nj->ni", a, transforms[:, :3, 3])[:, :2]
    error = np.linspace(1, 30, n) if expected_error_deg is None else np.asarray(expected_error_deg, dtype=float)
    eigenvalues = np.sort(np.random.default_rng(1).normal(size=(n, 4)), axis=1)
    np.savez(path, particle_id=np.asarray(ids), quaternion=Rotation.from_matrix(a).as_quat(),
             bingham=np.tile(np.eye(4), (n, 1, 1)), eigenvalues=eigenvalues, expected_error_deg=error,
             error_bound_deg=2 * error, shift_angstrom=shift_px * pixel_size_angstrom, figure_of_merit=1 / (1 + error),
             match_score=1 - error / 100 if match_score is None else match_score,
             **{name: np.asarray(values) for name, values in more.items()},
             **({} if reason is None else _verdicts(np.asarray(reason), recentre_shift_angstrom, alternative_quaternion, error)))


def _verdicts(reason, recentre_shift_angstrom, alternative_quaternion, error):
    n, is_off = len(reason), reason == "off-centre"
    recentre = np.zeros((n, 2)) if recentre_shift_angstrom is None else recentre_shift_angstrom
    probability = np.where(np.isin(reason, ["none", "ambiguous-orientation"]), 0.95, 0.05) - 1e-3 * np.arange(n) / n
    return {"reason": reason, "particle_probability": probability,
            "recentre_shift_angstrom": np.where(is_off[:, None], recentre, np.nan).astype(np.float32),
            "alternative_quaternion": np.full((n, 4), np.nan) if alternative_quaternion is None else alternative_quaternion,
            "expected_shift_error_angstrom": 0.1 * error, "shift_error_bound_angstrom": 0.2 * error}
