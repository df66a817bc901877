"""The demo's Scipion workflow: import, train, predict, subset, and RELION's maps of all, kept and rejected particles.

Run by script/demo with ``script/scipion python``. Writes where each result is to OUT/demo.json.
"""

import argparse
import json
import logging
import os
import re
import sys
import time
from pathlib import Path

import pyworkflow as pw
from pyworkflow.project import Manager

logging.basicConfig(level="ERROR")
DOMAIN = pw.Config.getDomain()
DOMAIN.getProtocols()

from cryoforum import Plugin  # noqa: E402  plugins can be imported once the domain is loaded
from cryoforum.protocols import CryoForumProtPredict, CryoForumProtSubset, CryoForumProtTrain  # noqa: E402
from pwem.protocols import ProtImportParticles, ProtImportVolumes  # noqa: E402
from relion.protocols import ProtRelionReconstruct  # noqa: E402

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
            self.project._updateProtocol(protocol)


def import_data(flow, data):
    summary = json.loads((data / "summary.json").read_text())
    acquisition = dict(voltage=300, sphericalAberration=2.7, amplitudeContrast=0.1)
    particles = flow.run("import particles", ProtImportParticles, importFrom=ProtImportParticles.IMPORT_FROM_RELION,
                         starFile=str(data / "particles.star"), samplingRate=summary["pixel_size_angstrom"],
                         magnification=50000, **acquisition)
    reference = flow.run("import reference map", ProtImportVolumes, filesPath=str(data / "map.mrc"),
                         samplingRate=summary["pixel_size_angstrom"])
    return (particles, "outputParticles"), (reference, "outputVolume")


def orient(flow, particles, reference, minutes):
    """Train, predict and select: the protocols."""
    compute = dict(useGpu=Plugin.hasGpu(), numberOfThreads=os.cpu_count())
    train = flow.run("train orientation network", CryoForumProtTrain,
                     {"inputParticles": particles, "referenceVolume": reference}, maxMinutes=minutes, **compute)
    predict = flow.run("predict orientations", CryoForumProtPredict,
                       {"inputParticles": particles, "inputNetwork": (train, "outputNetwork")}, **compute)
    subset = flow.run("uncertainty subset", CryoForumProtSubset, {"inputParticles": (predict, "outputParticles")})
    return train, predict, subset


def reconstruct(flow, predict, subset):
    """RELION's maps, by name; a subset without particles has none."""
    sets = {"all": (predict, "outputParticles"), "kept": (subset, "outputParticles"),
            "rejected": (subset, "outputParticlesRejected")}
    maps = {}
    for name, (protocol, output) in sets.items():
        if hasattr(protocol, output):
            done = flow.run(f"RELION reconstruct: {name}", ProtRelionReconstruct,
                            {"inputParticles": (protocol, output)}, doCTF=True)
            maps[name] = os.path.abspath(done.outputVolume.getFileName())
    return maps


def ids_of(protocol, output):
    particles = getattr(protocol, output, None)
    return [] if particles is None else [int(i) for i in particles.getIdSet()]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="run of cryoforum simulate")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="time of the training")
    options = parser.parse_args()
    data, out = options.data.resolve(), options.out.resolve()
    flow = Workflow()
    particles, reference = import_data(flow, data)
    train, predict, subset = orient(flow, particles, reference, options.minutes)
    maps = reconstruct(flow, predict, subset)
    (out / "demo.json").write_text(json.dumps({
        "project": PROJECT, "project_path": os.path.abspath(flow.project.path),
        "train": os.path.abspath(train._getExtraPath("train")),
        "predict": os.path.abspath(predict._getExtraPath("predict")),
        "maps": maps, "kept": ids_of(subset, "outputParticles"),
        "rejected": ids_of(subset, "outputParticlesRejected")}, indent=2))


if __name__ == "__main__":
    main()
