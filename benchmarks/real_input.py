"""Real particle stacks through the whole chain in Scipion: import, train, predict, subset, RELION reconstruct.

    script/scipion python benchmarks/real_input.py --data DATA [--minutes M] [--threads N] [--no-map]
        [--only NAME ...]

DATA holds ``particles/``, ``models/`` and ``maps/`` (public test stacks of 5, 7 and 17 images; a ribosome's atomic
model; the RELION tutorial's beta-galactosidase map). What is shown: that real files are read (STAR 3.0 and 3.1, dark
protein, sloppy headers), that nothing a particle had is lost, and what the software says about images that its
reference does not fit well. What so few images cannot show: a map. 5 to 17 images give no resolution worth a name, and
the reference is of a related particle, not of the same one.
"""

import argparse
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyworkflow as pw
from pyworkflow.project import Manager

logging.basicConfig(level="ERROR")
pw.Config.getDomain().getProtocols()

from cryoforum import Plugin  # noqa: E402  plugins can be imported once the domain is loaded
from cryoforum.protocols import CryoForumProtPredict, CryoForumProtSubset, CryoForumProtTrain  # noqa: E402
from cryoforum.protocols.protocol_subset import KEEP_FRACTION  # noqa: E402
from pwem.protocols import ProtImportParticles, ProtImportVolumes  # noqa: E402
from relion.protocols import ProtRelionReconstruct  # noqa: E402
from results_page import record  # noqa: E402

REFERENCE_BOX_PX = 64


@dataclass(frozen=True)
class Stack:
    """A public stack; its STAR file names the images by another file name."""

    name: str
    star: str
    stack: str
    box_px: int
    pixel_size_angstrom: float
    amplitude_contrast: float
    model: str
    """Atomic model of the reference."""
    note: str
    has_poses: bool = False


STACKS = [
    Stack("empiar-10076", "cryodrgn_empiar_10076_7.star", "cryodrgn_empiar_10076_7.mrcs", 320, 1.31, 0.07,
          "70S_sparx_grp0.pdb.gz", "7 images of assembling 50S, dark protein, STAR 3.0, CTF only; reference: 70S"),
    Stack("relion-3.0", "aspire_sample_relion_data.star", "aspire_sample.mrcs", 200, 1.338, 0.1,
          "5a1a.pdb.gz", "17 images with RELION's poses, STAR 3.0; molecule unknown, reference: beta-galactosidase",
          has_poses=True),
    Stack("relion-3.1", "cryodrgn_relion31.star", "cryodrgn_relion31.mrcs", 256, 2.806, 0.1,
          "70S_sparx_grp0.pdb.gz", "5 images of decorated microtubules with optics groups and RELION's poses, STAR "
          "3.1; reference: 70S, which is wrong on purpose", has_poses=True),
]


def engine(*words):
    done = subprocess.run([Plugin.getPython(), "-m", "cryoforum_core", *map(str, words), "--device", "cpu"],
                          env=Plugin.getEnviron(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"cryoforum {words[0]}: {done.stderr}")


def launch(project, label, Protocol, inputs=(), **parameters):
    protocol = project.newProtocol(Protocol, **parameters)
    protocol.setObjLabel(label)
    for name, (source, output) in dict(inputs).items():
        getattr(protocol, name).set(source)
        getattr(protocol, name).setExtended(output)
    problems = protocol.validate()
    if problems:
        sys.exit(f"{label}: {problems}")
    print(f"-- {label}", flush=True)
    project.launchProtocol(protocol, wait=True)
    if not protocol.isFinished():
        sys.exit(f"{label} failed: {protocol.getErrorMessage()}\n{os.path.abspath(protocol._getLogsPath())}")
    return protocol


def prepare(stack, data, folder):
    """The STAR file beside a link to its stack, under the name that the STAR file uses."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "images.mrcs"
    link.unlink(missing_ok=True)
    link.symlink_to(data / "particles" / stack.stack)
    rows = (data / "particles" / stack.star).read_text().splitlines()
    wanted = [i for i, row in enumerate(rows) if row.startswith("_rlnImageName")][0]
    column = int(rows[wanted].split("#")[1]) - 1

    def renamed(row):
        words = row.split()
        if len(words) <= column or "@" not in words[column]:
            return row
        words[column] = f"{int(words[column].split('@')[0]):06d}@images.mrcs"
        return " ".join(words)

    (folder / "particles.star").write_text("\n".join(map(renamed, rows)) + "\n")
    return folder / "particles.star"


def reference_map(stack, model, folder):
    """A map of the atomic model with the stack's field of view."""
    run = folder / "reference"
    if not (run / "map.mrc").exists():
        engine("simulate", "--out", run, "--model", model, "--n-particles", 1, "--box-size-px", REFERENCE_BOX_PX,
               "--pixel-size-angstrom", stack.box_px * stack.pixel_size_angstrom / REFERENCE_BOX_PX)
    return run / "map.mrc"


def run_chain(project, name, star, map_path, map_pixel_size, pixel_size, amplitude_contrast, options, symmetry="c1"):
    """import -> train -> predict -> subset -> RELION reconstruct; returns the protocols by name."""
    cpu = {"useGpu": False, "numberOfThreads": options.threads}
    acquisition = dict(voltage=300, sphericalAberration=2.7, amplitudeContrast=amplitude_contrast, magnification=50000)
    particles = launch(project, f"{name}: import", ProtImportParticles, starFile=str(star), samplingRate=pixel_size,
                       importFrom=ProtImportParticles.IMPORT_FROM_RELION, **acquisition)
    volume = launch(project, f"{name}: reference", ProtImportVolumes, filesPath=str(map_path),
                    samplingRate=map_pixel_size)
    images, reference = (particles, "outputParticles"), (volume, "outputVolume")
    train = launch(project, f"{name}: train", CryoForumProtTrain, {"inputParticles": images,
                                                                   "referenceVolume": reference},
                   maxMinutes=options.minutes, symmetry=symmetry, **cpu)
    predict = launch(project, f"{name}: predict", CryoForumProtPredict,
                     {"inputParticles": images, "inputNetwork": (train, "outputNetwork"),
                      "referenceVolume": reference}, **cpu)
    subset = launch(project, f"{name}: subset", CryoForumProtSubset, {"inputParticles": (predict, "outputParticles")},
                    criterion=KEEP_FRACTION, keepFraction=0.7)
    # padding 1: a map of 320 px at padding 2 takes RELION 10 minutes for a handful of images
    done = {"import": particles, "train": train, "predict": predict, "subset": subset}
    if options.map:
        done["reconstruct"] = launch(project, f"{name}: reconstruct", ProtRelionReconstruct,
                                     {"inputParticles": (subset, "outputParticles")}, doCTF=True,
                                     symmetryGroup=symmetry, pad=1, extraParams=f"--j {options.threads}")
    return done


def lost_metadata(before, *after):
    """Attributes that differ between the imported particles and their namesakes in the outputs; the pose may."""
    original = {p.getObjId(): p.clone() for p in before.iterItems()}
    lost, seen = set(), set()
    for particles in after:
        for particle in particles.iterItems():
            seen.add(particle.getObjId())
            now = particle.getObjDict()
            lost |= {name for name, value in original[particle.getObjId()].getObjDict().items()
                     if not name.startswith("_transform") and now.get(name, "missing") != value}
    return sorted(lost) + ([] if seen == set(original) else ["some particles"])


def found_lines(protocol):
    """What the engine says about contrast, CTF state, and whether the model applies."""
    text = Path(protocol._getLogsPath("run.stdout")).read_text(errors="replace")
    text += Path(protocol._getLogsPath("run.stderr")).read_text(errors="replace")
    return [line for line in text.splitlines() if re.match(r"(WARNING: )?(Contrast|CTF|Matching)", line.strip())]


def record_figures(note, done, true_deg=None):
    """``true_deg``: median and mean, where the truth is known."""
    predict, subset = done["predict"], done["subset"]
    summary = json.loads(Path(predict._getExtraPath("predict/summary.json")).read_text())
    expected = [particle._cryoforumExpectedError.get() for particle in predict.outputParticles.iterItems()]
    applies = "applies" if summary["model_applies"] else "mismatch warning"
    record("real_images", {"figures": {
        "stack": note, "assessment": f"{applies}: {summary['model_applies_reason']}",
        "expected_deg": round(float(np.median(expected)), 1), "true_deg": true_deg,
        "kept": f"{subset.outputParticles.getSize()} of {predict.outputParticles.getSize()}"}})


def report(name, note, done):
    predict, subset = done["predict"], done["subset"]
    summary = json.loads(Path(predict._getExtraPath("predict/summary.json")).read_text())
    outputs = [predict.outputParticles, subset.outputParticles, subset.outputParticlesRejected]
    lost = lost_metadata(done["import"].outputParticles, *outputs)
    values = [(p._cryoforumExpectedError.get(), p._cryoforumMatchScore.get()) for p in outputs[0].iterItems()]
    error_deg, score = np.array(values).T
    print(f"\n== {name}: {note}")
    for line in found_lines(predict):
        print(f"   {line.strip()}")
    print(f"   network alone: median error {done['train'].outputNetwork.getValidationMedianError():.1f} degrees on "
          "held-out simulated images")
    print(f"   expected error: median {np.median(error_deg):.1f}, range {error_deg.min():.1f} to {error_deg.max():.1f} "
          f"degrees; match score {score.min():.2f} to {score.max():.2f}")
    print(f"   model applies: {summary['model_applies']} ({summary['model_applies_reason']})")
    print(f"   kept {outputs[1].getSize()} of {outputs[0].getSize()}; metadata lost: {', '.join(lost) or 'none'}")
    if "reconstruct" in done:
        print(f"   RELION's map: {os.path.abspath(done['reconstruct'].outputVolume.getFileName())}", flush=True)
    return not lost


def compare_with_relion(star, predict, folder):
    """Angles between our poses and RELION's, after the best common rotation (the frames are unrelated)."""
    run = folder / "against_relion"
    subprocess.run(["rm", "-rf", run], check=True)
    engine("evaluate", "--out", run, "--particles", Path(predict._getExtraPath("predict/particles.star")).absolute(),
           "--truth", star, "--align-frame", "--allow-mirror")
    summary = json.loads((run / "summary.json").read_text())
    print(f"   against RELION's poses, after aligning the frames: median {summary['median_error_deg']:.1f} degrees "
          "(unrelated poses of so few images align to 60-90 degrees)")


def beta_galactosidase(project, data, folder, options):
    """The real D2 map as the reference of images simulated from it: errors are known, modulo D2."""
    map_path = next((data / "maps").glob("betaGal_real_*.mrc"))
    simulated = folder / "simulated"
    if not (simulated / "summary.json").exists():
        engine("simulate", "--out", simulated, "--model", map_path, "--n-particles", 200, "--snr", 0.1,
               "--symmetry", "d2")
    pixel_size = json.loads((simulated / "summary.json").read_text())["pixel_size_angstrom"]
    done = run_chain(project, "beta-galactosidase", simulated / "particles.star", map_path, pixel_size, pixel_size, 0.1,
                     options, symmetry="d2")
    ok = report("beta-galactosidase", "200 images simulated from the real map, SNR 0.1, D2", done)
    run = folder / "errors"
    subprocess.run(["rm", "-rf", run], check=True)
    particles = Path(done["predict"]._getExtraPath("predict/particles.star")).absolute()
    engine("evaluate", "--out", run, "--particles", particles, "--truth", simulated / "truth.star", "--symmetry", "d2")
    summary = json.loads((run / "summary.json").read_text())
    record_figures("200 images simulated from the real map, SNR 0.1, D2", done,
                   [summary["median_error_deg"], summary["mean_error_deg"]])
    print(f"   true error modulo D2: median {summary['median_error_deg']:.2f}, mean {summary['mean_error_deg']:.2f} "
          "degrees")
    return ok


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2.0, help="training time of each network")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-map", dest="map", action="store_false", help="without RELION's reconstruction, which at "
                        "320 px takes much memory and many minutes")
    parser.add_argument("--only", nargs="*", help="names of stacks, or beta-galactosidase")
    options = parser.parse_args()
    data = options.data.resolve()
    manager = Manager()
    if manager.hasProject("cryoforum_real_input"):
        manager.deleteProject("cryoforum_real_input")
    project = manager.createProject("cryoforum_real_input")
    os.chdir(project.path)
    work = Path(project.path).absolute() / "Uploads"
    ok = True
    for stack in STACKS:
        if options.only and stack.name not in options.only:
            continue
        star = prepare(stack, data, work / stack.name)
        map_path = reference_map(stack, data / "models" / stack.model, work / stack.name)
        map_pixel_size = stack.box_px * stack.pixel_size_angstrom / REFERENCE_BOX_PX
        done = run_chain(project, stack.name, star, map_path, map_pixel_size, stack.pixel_size_angstrom,
                         stack.amplitude_contrast, options)
        ok &= report(stack.name, stack.note, done)
        record_figures(stack.note, done)
        if stack.has_poses:
            compare_with_relion(star, done["predict"], work / stack.name)
    if not options.only or "beta-galactosidase" in options.only:
        (work / "betagal").mkdir(parents=True, exist_ok=True)
        ok &= beta_galactosidase(project, data, work / "betagal", options)
    print(f"\nproject: {project.path}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
