"""How long the plugin takes to hand particles to the engine and to take its results back. Limit: 60 s for 100,000.

    script/scipion python benchmarks/scipion_set_io.py [N]

A set with CTF, coordinates, acquisition and orientations is written by Scipion (not counted), then: set -> STAR;
orientation_posterior.npz -> output set with poses and all uncertainty attributes; subset kept / rejected. Every output
is read back and compared. The images are not touched: neither Scipion nor the plugin reads them in these steps.
"""

import logging
import os
import sys
import tempfile
import time

import numpy as np
import pyworkflow as pw

logging.basicConfig(level="ERROR")
pw.Config.getDomain().getPlugins()

import mrcfile  # noqa: E402  Scipion's configuration comes before everything that imports it
from cryoforum.convert import copyWithPredictions, readAttributes, readPredictions, reopen, writeParticlesStar  # noqa: E402
from pwem.objects import Acquisition, Coordinate, CTFModel, Particle, SetOfParticles, Transform  # noqa: E402
from results_page import record  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402

LIMIT_SECONDS_PER_100K = 60.0
PIXEL_SIZE_ANGSTROM = 1.5
RUN = "Runs/000001_Benchmark"  # Scipion expects sets below such a folder


def make_input(n):
    """A set as an import or an extraction makes it."""
    with mrcfile.new("stack.mrcs") as mrc:
        mrc.set_data(np.zeros((1, 64, 64), dtype=np.float32))
    particles = SetOfParticles(filename=f"{RUN}/input.sqlite", indexes=["_classId", "_micId"])
    particles.setSamplingRate(PIXEL_SIZE_ANGSTROM)
    acquisition = Acquisition(voltage=300, sphericalAberration=2.7, amplitudeContrast=0.1, magnification=50000)
    particles.setAcquisition(acquisition)
    particles.setHasCTF(True)
    particles.setAlignmentProj()
    matrices = np.tile(np.eye(4), (n, 1, 1))
    matrices[:, :3, :3] = Rotation.random(n, random_state=0).as_matrix()
    particle, coordinate, transform = Particle(), Coordinate(), Transform()
    particle.setAcquisition(acquisition)
    particle.setCTF(CTFModel(defocusU=12000.0, defocusV=11800.0, defocusAngle=30.0))
    coordinate.setMicName("micrograph.mrc")
    coordinate.setMicId(1)
    for i in range(n):
        particle.setObjId(i + 1)
        particle.setLocation(i + 1, "stack.mrcs")
        coordinate.setPosition(i % 4000, i % 3000)
        particle.setCoordinate(coordinate)
        transform.setMatrix(matrices[i])
        particle.setTransform(transform)
        particles.append(particle)
    particles.write()
    return particles


def make_posterior(n):
    """What the engine would predict, in another order than the set's."""
    rng = np.random.default_rng(1)
    error_deg = rng.uniform(0.5, 40, n)
    np.savez("posterior.npz", particle_id=rng.permutation(n) + 1, quaternion=Rotation.random(n, 2).as_quat(),
             bingham=np.zeros((n, 4, 4), np.float32), eigenvalues=np.sort(rng.normal(size=(n, 4)), axis=1),
             expected_error_deg=error_deg, error_bound_deg=2 * error_deg, shift_angstrom=rng.normal(size=(n, 2)),
             figure_of_merit=1 / (1 + error_deg), match_score=rng.uniform(0, 1, n))


def timed(label, function):
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{label:<55} {wall:7.1f} s wall {cpu:7.1f} s CPU", flush=True)
    return result, np.array([wall, cpu])


def take_results(particles):
    output = SetOfParticles(filename=f"{RUN}/output.sqlite", indexes=["_classId", "_micId"])
    copyWithPredictions(particles, output, readPredictions("posterior.npz", PIXEL_SIZE_ANGSTROM))
    output.write()
    return output


def split(particles):
    ids, values = readAttributes(particles, ["_cryoforumExpectedError"])
    best = np.argsort(values["_cryoforumExpectedError"])[:int(0.8 * len(ids))]
    for name, chosen in (("kept", ids[best]), ("rejected", np.delete(ids, best))):
        wanted = set(chosen.tolist())
        subset = SetOfParticles(filename=f"{RUN}/{name}.sqlite")
        subset.copyInfo(particles)
        subset.copyItems(reopen(particles), doClone=False,
                         itemSelectedCallback=lambda particle, wanted=wanted: particle.getObjId() in wanted)
        subset.write()
        if subset.getSize() != len(chosen):
            raise SystemExit(f"{name}: {subset.getSize()} particles instead of {len(chosen)}")


def check(n):
    """The output holds each particle's own result."""
    output = SetOfParticles(filename=f"{RUN}/output.sqlite")
    output.loadAllProperties()
    ids, values = readAttributes(output, ["_cryoforumExpectedError"])
    with np.load("posterior.npz") as arrays:
        expected = arrays["expected_error_deg"][np.argsort(arrays["particle_id"])]
    if output.getSize() != n or not np.allclose(values["_cryoforumExpectedError"], expected):
        raise SystemExit("the output does not hold the results")


def main():
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.makedirs(RUN)
        particles, _ = timed(f"input set of {n} particles made (not counted)", lambda: make_input(n))
        make_posterior(n)
        _, into = timed("set -> STAR", lambda: writeParticlesStar(particles, "particles.star"))
        output, out = timed("npz -> output set", lambda: take_results(particles))
        check(n)
        _, subset = timed("subset: kept and rejected (not counted)", lambda: split(output))
    limit = LIMIT_SECONDS_PER_100K * n / 100_000
    both = into + out
    print(f"in and out: {both[0]:.1f} s for {n} particles; limit {limit:.1f} s")
    for step, seconds in (("set to STAR", into), ("results to output set with all attributes", out),
                          (f"in and out (limit {limit:.0f} s)", both), ("subset, kept and rejected", subset)):
        record("speed", {"figures": {"step": f"Scipion: {step}", "particles": n, "wall": f"{seconds[0]:.1f} s",
                                     "processor": f"{seconds[1]:.1f} s"}})
    return 0 if both[0] <= limit else 1


if __name__ == "__main__":
    sys.exit(main())
