"""Does RELION's Refine3D go on from what ab initio found? In the project that the demo left.

    script/demo --out DEMO && script/scipion python benchmarks/refine3d.py DEMO [--threads N]

RELION 3D auto-refine with the kept particles, the map of ab initio as reference and local searches around the
orientations, as a user would go on. Printed: errors against the truth before and after, and time.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from cryoforum.convert import writeParticlesStar
from pyworkflow.project import Manager
from real_input import engine, launch  # loads Scipion's plugins
from relion.protocols import ProtRelionRefine3D
from results_page import record

SAMPLING_3_7_DEG = 3  # of the form's list of angular samplings


def errors(particles, volume, demo, folder):
    """Figures of ``cryoforum evaluate`` for a set and its map; the frame and the hand of ab initio are free."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    writeParticlesStar(particles, str(folder / "particles.star"))
    engine("evaluate", "--out", folder / "evaluation", "--particles", folder / "particles.star", "--truth",
           demo / "simulated/truth.star", "--map", Path(volume).absolute(), "--truth-map", demo / "simulated/map.mrc",
           "--align-frame", "--allow-mirror")
    return json.loads((folder / "evaluation/summary.json").read_text())


def newest(project, name):
    found = [protocol for protocol in project.getRuns() if protocol.getClassName() == name and protocol.isFinished()]
    if not found:
        sys.exit(f"The demo's project has no finished {name}: run script/demo first.")
    return found[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="what script/demo left (--out)")
    parser.add_argument("--threads", type=int, default=1, help="of each of RELION's processes")
    options = parser.parse_args()
    demo = options.demo.resolve()
    project = Manager().loadProject(json.loads((demo / "demo.json").read_text())["project"])
    os.chdir(project.path)
    ab_initio, subset = newest(project, "CryoForumProtAbInitio"), newest(project, "CryoForumProtSubset")
    box_px, pixel_size = ab_initio.outputVolume.getDim()[0], ab_initio.outputVolume.getSamplingRate()
    start = time.monotonic()
    refined = launch(project, "RELION refine", ProtRelionRefine3D, {
        "inputParticles": (subset, "outputParticles"), "referenceVolume": (ab_initio, "outputVolume")},
        copyAlignment=True, angularSamplingDeg=SAMPLING_3_7_DEG, localSearchAutoSamplingDeg=SAMPLING_3_7_DEG,
        initialLowPassFilterA=6 * pixel_size, doGpu=False, numberOfMpi=3, numberOfThreads=options.threads,
        allParticlesRam=True, maskDiameterA=int(0.9 * box_px * pixel_size))
    minutes = (time.monotonic() - start) / 60
    print("| | median error (deg) | mean | within 5 deg | shift, median (A) | map against the truth, FSC 0.143 / 0.5 (A) |\n"
          "|---|---|---|---|---|---|")
    for name, particles, volume in (("ab initio", subset.outputParticles, ab_initio.outputVolume),
                                    ("RELION Refine3D", refined.outputParticles, refined.outputVolume)):
        found = errors(particles, volume.getFileName(), demo, demo / "refine3d" / name.split()[0])
        print(f"| {name} | {found['median_error_deg']:.2f} | {found['mean_error_deg']:.2f} "
              f"| {100 * found['fraction_below_5deg']:.1f} % | {found['median_shift_error_angstrom']:.2f} "
              f"| {found['resolution_angstrom']:.1f} / {found['resolution_at_fsc_0.5_angstrom']:.1f} |")
        record("refine3d", {"figures": {
            "poses": name if name == "ab initio" else f"{name} from there", "median_deg": found["median_error_deg"],
            "mean_deg": found["mean_error_deg"], "within_5_deg_percent": 100 * found["fraction_below_5deg"],
            "shift_angstrom": found["median_shift_error_angstrom"],
            "map_angstrom": [found["resolution_angstrom"], found["resolution_at_fsc_0.5_angstrom"]]}})
    print(f"{subset.outputParticles.getSize()} particles, {minutes:.1f} minutes of RELION")


if __name__ == "__main__":
    main()
