"""The Scipion workflow of the demo: import, ab initio, subset, RELION maps of all, kept and rejected particles, postprocess.

Run by script/demo with ``script/scipion python``. Writes the paths of the results to OUT/demo.json.
"""

import argparse
import json
import logging
import os
import re
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pyworkflow as pw
from pyworkflow.project import Manager

logging.basicConfig(level="ERROR")
DOMAIN = pw.Config.getDomain()
DOMAIN.getProtocols()

from cryoforum import Plugin  # noqa: E402  plugins can be imported once the domain is loaded
from cryoforum.protocols import CryoForumProtAbInitio, CryoForumProtSubset  # noqa: E402
from pwem.protocols import ProtImportParticles  # noqa: E402
from relion.protocols import ProtRelionCreateMask3D, ProtRelionPostprocess, ProtRelionReconstruct  # noqa: E402

PROJECT = "cryoforum_demo"
# lines of the engine's progress: "train  40%  1200/3000 steps  loss=0.31  time left 2:10"
PROGRESS = re.compile(r"^\s*\S.*\b\d+%\s+\d+/\d+ ")


class Workflow:
    """A new Scipion project whose protocols run one after the other, with their progress on the terminal."""

    def __init__(self):
        manager = Manager()
        if manager.hasProject(PROJECT):
            manager.deleteProject(PROJECT)
        self.project = manager.createProject(PROJECT)
        os.chdir(self.project.path)  # Scipion's paths are relative to the project

    def run(self, title, Protocol, inputs=(), **parameters):
        """Runs one protocol in a process of its own, as the GUI does. inputs: name -> (protocol, its output)."""
        protocol = self.project.newProtocol(Protocol, **parameters)
        protocol.setObjLabel(title)
        for name, (source, output) in dict(inputs).items():
            getattr(protocol, name).set(source)
            getattr(protocol, name).setExtended(output)
        problems = protocol.validate()
        if problems:
            sys.exit(f"{title}: " + "\n".join(problems))
        print(f"\n== {title}", flush=True)
        start = time.monotonic()
        self.project.launchProtocol(protocol, wait=False)
        self._follow(protocol)
        if not protocol.isFinished():
            sys.exit(f"{title} failed: {protocol.getErrorMessage()}\nLogs: {os.path.abspath(protocol._getLogsPath())}")
        if Protocol.__name__.startswith("CryoForum"):
            for line in protocol.summary():
                if "[[" not in line:  # a link for Scipion's windows
                    print("   " + line.replace("*", ""))
        print(f"   {time.monotonic() - start:.0f} s", flush=True)
        return protocol

    def _follow(self, protocol):
        log, position = Path(protocol._getLogsPath("run.stdout")), 0
        while True:
            active = protocol.isActive() or protocol.getStatus() in ("launched", "scheduled")
            if log.exists():
                with log.open(errors="replace") as file:
                    file.seek(position)
                    lines = file.readlines()
                    position = file.tell()
                for line in filter(PROGRESS.match, lines):
                    print("   " + line.rstrip(), flush=True)
            if not active:
                return
            time.sleep(1)
            self._update(protocol)

    def _update(self, protocol):
        """Updates the protocol from what its process has written.

        Scipion reads that first and looks for the process afterwards, so that a run which ends in between is marked as
        failed. What the process wrote before it ended has the true state.
        """
        self.project._updateProtocol(protocol)
        if protocol.isFailed():
            protocol.lastUpdateTimeStamp.set(None)  # read again
            self.project._updateProtocol(protocol)


def import_data(flow, data):
    summary = json.loads((data / "summary.json").read_text())
    acquisition = dict(voltage=300, sphericalAberration=2.7, amplitudeContrast=0.1)
    particles = flow.run("import particles", ProtImportParticles, importFrom=ProtImportParticles.IMPORT_FROM_RELION,
                         starFile=str(data / "particles.star"), samplingRate=summary["pixel_size_angstrom"],
                         magnification=50000, **acquisition)
    return particles, "outputParticles"


def orient(flow, particles, minutes):
    """The protocols from images alone to a map and orientations, and the clean-up."""
    compute = dict(useGpu=Plugin.hasGpu(), numberOfThreads=os.cpu_count())
    ab_initio = flow.run("ab initio", CryoForumProtAbInitio, {"inputParticles": particles}, trainMinutes=minutes, **compute)
    subset = flow.run("uncertainty subset", CryoForumProtSubset, {"inputParticles": (ab_initio, "outputParticles")})
    return ab_initio, subset


def reconstruct(flow, ab_initio, subset):
    """RELION maps by name; a subset without particles has none."""
    sets = {"all": (ab_initio, "outputParticles"), "kept": (subset, "outputParticles"),
            "rejected": (subset, "outputParticlesRejected")}
    maps = {}
    for name, (protocol, output) in sets.items():
        if hasattr(protocol, output):
            done = flow.run(f"RELION reconstruct: {name}", ProtRelionReconstruct,
                            {"inputParticles": (protocol, output)}, doCTF=True)
            maps[name] = os.path.abspath(done.outputVolume.getFileName())
    return maps


def postprocess(flow, ab_initio):
    """A mask, and the sharpened map from the two half maps of ab initio, by RELION."""
    volume = ab_initio.outputVolume
    with mrcfile.open(volume.getFileName(), permissive=True) as mrc:
        threshold = 0.25 * float(np.percentile(mrc.data, 99.5))
    mask = flow.run("RELION mask", ProtRelionCreateMask3D, {"inputVolume": (ab_initio, "outputVolume")},
                    threshold=threshold, initialLowPassFilterA=6 * volume.getSamplingRate())
    done = flow.run("RELION postprocess", ProtRelionPostprocess,
                    {"inputVolume": (ab_initio, "outputVolume"), "solventMask": (mask, "outputMask")},
                    relionInput=False, inputType=0, doAutoBfactor=False, bfactor=0)
    return os.path.abspath(done.outputVolume.getFileName())


def ids_of(protocol, output):
    particles = getattr(protocol, output, None)
    return [] if particles is None else [int(i) for i in particles.getIdSet()]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="run of cryoforum simulate")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="training time in minutes")
    options = parser.parse_args()
    data, out = options.data.resolve(), options.out.resolve()
    flow = Workflow()
    ab_initio, subset = orient(flow, import_data(flow, data), options.minutes)
    maps = reconstruct(flow, ab_initio, subset)
    maps["postprocessed"] = postprocess(flow, ab_initio)
    (out / "demo.json").write_text(json.dumps({
        "project": PROJECT, "project_path": os.path.abspath(flow.project.path),
        "ab_initio": os.path.abspath(ab_initio._getExtraPath("ab_initio")),
        "maps": maps, "kept": ids_of(subset, "outputParticles"),
        "rejected": ids_of(subset, "outputParticlesRejected")}, indent=2))


if __name__ == "__main__":
    main()
