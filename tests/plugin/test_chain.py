"""The main job in Scipion, for real: import, train, predict, subset, and RELION before, between and after them.

The sets are tiny (32 px, 100 particles), so that everything takes minutes on two cores; the figures demanded are
those a set of that size can reach.
"""

import json
import os
import subprocess
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from engine_data import errors_deg, import_star, map_correlation, simulate, star_rows

BOX_PX = 32
CPU = {"useGpu": False, "numberOfThreads": 2}
ATTRIBUTES = ["_cryoforum" + name for name in (
    "ExpectedError", "ErrorBound", "FigureOfMerit", "MatchScore", "ParticleProbability", "ExpectedShiftError",
    "ShiftErrorBound", "CentreX", "CentreY", "DispersionMax", "DispersionTrace", "DispersionWigner")]


@pytest.fixture(scope="module")
def data(project):
    return simulate(Path(project.getTmpPath("simulated")).absolute(), n_particles=100, box_size_px=BOX_PX, snr=0.5,
                    junk_fraction=0.1, junk_kinds="noise", shift_rms_px=1, seed=1)


@pytest.fixture(scope="module")
def pixel_size(data):
    return json.loads((data / "summary.json").read_text())["pixel_size_angstrom"]


@pytest.fixture(scope="module")
def truth(data):
    """dict particle id -> row of the known poses; a set imported without id column is numbered 1, 2, ..."""
    return {i: row for i, row in enumerate(star_rows(data / "truth.star"), start=1)}


@pytest.fixture(scope="module")
def imported(launch, data, pixel_size):
    return import_star(launch, data / "particles.star", pixel_size)


@pytest.fixture(scope="module")
def reference(launch, data, pixel_size):
    from pwem.protocols import ProtImportVolumes

    return launch(ProtImportVolumes, "reference", filesPath=str(data / "map.mrc"), samplingRate=pixel_size)


@pytest.fixture(scope="module")
def trained(launch, imported, reference):
    from cryoforum.protocols import CryoForumProtTrain

    return launch(CryoForumProtTrain, "train", inputParticles=(imported, "outputParticles"),
                  referenceVolume=(reference, "outputVolume"), maxMinutes=0.3, batchSize=32, **CPU)


@pytest.fixture(scope="module")
def predicted(launch, imported, trained):
    from cryoforum.protocols import CryoForumProtPredict

    return launch(CryoForumProtPredict, "predict", inputParticles=(imported, "outputParticles"),
                  inputNetwork=(trained, "outputNetwork"), **CPU)


@pytest.fixture(scope="module")
def subset(launch, predicted):
    from cryoforum.protocols import CryoForumProtSubset

    return launch(CryoForumProtSubset, "subset", inputParticles=(predicted, "outputParticles"))


def reconstruct(launch, protocol, output, **parameters):
    from relion.protocols import ProtRelionReconstruct

    return launch(ProtRelionReconstruct, f"reconstruct {output}", inputParticles=(protocol, output), doCTF=True,
                  **parameters)


def log(protocol, name="run.stdout"):
    return Path(protocol._getLogsPath(name)).read_text(errors="replace")


def test_the_network_is_an_output_that_describes_itself(trained, pixel_size):
    network = trained.outputNetwork
    assert network.exists() and network.getBoxSize() == BOX_PX and network.getSymmetry() == "c1"
    assert network.getPixelSize() == pytest.approx(pixel_size)
    # how good it is depends on the machine's speed, the training being a matter of seconds; it must be what was found
    found = json.loads((Path(network.getRunDirectory()) / "summary.json").read_text())
    assert network.getValidationMedianError() == pytest.approx(found["validation_median_error_deg"])
    assert 0 < network.getValidationMedianError() < 180
    assert f"{BOX_PX} px" in str(network) and "median error" in str(network)
    assert "Median error:" in trained.summary()[0] and "on simulated projections" in trained.summary()[0]
    assert "on simulated projections" in trained.methods()[0] and any("Chung" in text for text in trained.citations())


def test_the_log_tells_progress_and_time_left(trained):
    lines = [line for line in log(trained).splitlines() if line.startswith("train ")]
    assert any("time left" in line for line in lines)
    assert any("100%" in line and "took" in line for line in lines)


def test_a_network_reopened_from_the_project_is_the_same(project, trained):
    """As the GUI does: the object is read from the project's database."""
    again = project.getProtocol(trained.getObjId(), fromRuns=False)
    assert again.outputNetwork.getRunDirectory() == trained.outputNetwork.getRunDirectory()
    assert again.outputNetwork.exists()


def test_predicted_orientations_are_right(predicted, truth):
    good = {i: row for i, row in truth.items() if row["rlnCryoforumJunkKind"] == "none"}
    kept = [i for i in predicted.outputParticles.getIdSet() if i in good]
    error = dict(zip(predicted.outputParticles.getIdSet(), errors_deg(predicted.outputParticles, truth), strict=True))
    assert np.median([error[i] for i in kept]) < 8


def test_every_particle_has_every_uncertainty(predicted):
    particles = predicted.outputParticles
    assert particles.getSize() == 100 and particles.hasAlignmentProj()
    for particle in particles.iterItems():
        values = [particle.getAttributeValue(name) for name in ATTRIBUTES]
        assert np.isfinite(values).all(), particle.getObjId()
    assert "Median expected error" in predicted.summary()[1]


def test_metadata_survive_prediction_and_subset(imported, predicted, subset):
    """ids, image, CTF, acquisition, coordinates, micrograph, half set: everything but the pose is as imported."""
    before = {p.getObjId(): p.clone() for p in imported.outputParticles.iterItems()}
    first = before[1].getObjDict()
    for name in ("_ctfModel._defocusU", "_acquisition._voltage", "_coordinate._x", "_micId", "_rlnRandomSubset"):
        assert first.get(name) is not None, f"the import itself lacks {name}"
    seen = set()
    for output in (predicted.outputParticles, subset.outputParticles, subset.outputParticlesRejected):
        assert output.getAcquisition().getVoltage() == 300
        for particle in output.iterItems():
            seen.add(particle.getObjId())
            after = particle.getObjDict()
            for name, value in before[particle.getObjId()].getObjDict().items():
                if not name.startswith("_transform"):
                    assert after[name] == value, name
    assert seen == set(before)


def test_junk_is_what_is_rejected(subset, truth):
    rejected = [truth[i]["rlnCryoforumJunkKind"] != "none" for i in subset.outputParticlesRejected.getIdSet()]
    kept = [truth[i]["rlnCryoforumJunkKind"] != "none" for i in subset.outputParticles.getIdSet()]
    assert sum(rejected) + sum(kept) == 10
    assert np.mean(rejected) > 0.8 and np.mean(kept) < 0.02


def test_the_subset_is_the_engines_own(predicted, subset, tmp_path):
    """``cryoforum select`` on the run of predict and the plugin on the set's attributes choose the same particles."""
    subprocess.run([os.environ["CRYOFORUM_PYTHON"], "-m", "cryoforum_core", "select", "--out", str(tmp_path / "select"),
                    "--run", str(Path(predicted._getExtraPath("predict")).absolute())], check=True, capture_output=True)
    selected = {row["rlnParticleId"] for row in star_rows(tmp_path / "select/selected.star")}
    assert selected == set(subset.outputParticles.getIdSet())


def test_reasons_and_examples_go_on_to_the_subset(predicted, subset, truth):
    """The report shows examples of the run that found the orientations, as they were judged here."""
    from cryoforum.protocols.source import findSource

    source = findSource(subset)
    assert source.directory == predicted._runDirectory() and source.symmetry == "c1"
    page = Path(subset._selectedFile("report.html")).read_text()
    assert "Kept and rejected, with matching projections" in page
    source_of_errors = json.loads(Path(source.directory, "summary.json").read_text())["calibration_source"]
    assert "Coverage of the error bounds" in page and source_of_errors in page
    assert "Calibration of the expected error" in page
    for particle in subset.outputParticlesRejected.iterItems():
        reason = particle.getAttributeValue("_cryoforumRejectionReason")
        assert reason == particle.getAttributeValue("_cryoforumReason") != "none"
    assert "Error bounds: nominal coverage 90 %" in "\n".join(predicted.summary())


def test_relion_reconstructs_the_molecule(launch, predicted, subset, data):
    everything = reconstruct(launch, predicted, "outputParticles")
    kept = reconstruct(launch, subset, "outputParticles")
    correlations = [map_correlation(p.outputVolume.getFileName(), data / "map.mrc") for p in (everything, kept)]
    assert correlations[0] > 0.7 and correlations[1] > 0.7, correlations


def test_half_sets_reach_relion(launch, predicted, data):
    """Two independent half maps, both of the molecule and not the same."""
    halves = [reconstruct(launch, predicted, "outputParticles", subset=half).outputVolume.getFileName()
              for half in (1, 2)]
    assert map_correlation(halves[0], data / "map.mrc") > 0.6
    assert 0.5 < map_correlation(*halves) < 0.9999


def test_continue_with_a_larger_budget_and_restart(project, launch, imported, reference):
    from cryoforum.protocols import CryoForumProtTrain
    from pyworkflow.protocol.constants import MODE_RESTART, MODE_RESUME

    def steps():
        return json.loads(Path(protocol._getExtraPath("train/summary.json")).read_text())["steps"]

    protocol = launch(CryoForumProtTrain, "continue", inputParticles=(imported, "outputParticles"),
                      referenceVolume=(reference, "outputVolume"), maxSteps=4, batchSize=8, **CPU)
    assert steps() == 4
    for mode, budget in ((MODE_RESUME, 6), (MODE_RESTART, 5)):
        protocol.maxSteps.set(budget)
        protocol.runMode.set(mode)
        project.launchProtocol(protocol, wait=True)
        assert protocol.isFinished(), log(protocol, "run.stderr")
        assert steps() == budget and protocol.outputNetwork.exists()


def test_a_stopped_training_goes_on_from_its_checkpoint(project, imported, reference):
    from cryoforum.protocols import CryoForumProtTrain
    from pyworkflow.protocol.constants import MODE_RESUME

    protocol = project.newProtocol(CryoForumProtTrain, maxMinutes=20, batchSize=8, **CPU)
    for pointer, source, output in ((protocol.inputParticles, imported, "outputParticles"),
                                    (protocol.referenceVolume, reference, "outputVolume")):
        pointer.set(source)
        pointer.setExtended(output)
    project.launchProtocol(protocol, wait=False)
    checkpoint = Path(protocol._getExtraPath("train/checkpoint"))
    deadline = time.monotonic() + 300
    while not (checkpoint.is_dir() and any(checkpoint.iterdir())):
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.5)
    project.stopProtocol(protocol)
    protocol.maxMinutes.set(0.1)
    protocol.runMode.set(MODE_RESUME)
    project.launchProtocol(protocol, wait=True)
    assert protocol.isFinished(), log(protocol, "run.stderr")
    assert "Going on with the unfinished run" in log(protocol)


def test_the_engines_message_reaches_the_user(project, launch, data, pixel_size, trained):
    """A stack that was cut short since its import: the protocol fails with the engine's own words."""
    from cryoforum.protocols import CryoForumProtPredict

    folder = Path(project.getTmpPath("cut")).absolute()
    folder.mkdir()
    for name in ("particles.star", "particles.mrcs"):
        (folder / name).write_bytes((data / name).read_bytes())
    broken = import_star(launch, folder / "particles.star", pixel_size, "import cut")
    stack = folder / "particles.mrcs"
    stack.write_bytes(stack.read_bytes()[:20000])
    protocol = project.newProtocol(CryoForumProtPredict, **CPU)
    protocol.inputParticles.set(broken)
    protocol.inputParticles.setExtended("outputParticles")
    protocol.inputNetwork.set(trained)
    protocol.inputNetwork.setExtended("outputNetwork")
    project.launchProtocol(protocol, wait=True)
    assert protocol.isFailed()
    assert "exit code 2" in protocol.getErrorMessage() and "particles.mrcs" in protocol.getErrorMessage()
    assert "The run failed" in protocol._summary()[0]


def test_chain_with_relion_preprocess(launch, imported, reference, data, truth, pixel_size):
    """RELION rescales 32 -> 24 px; a network for these images learns from a map rescaled by RELION too."""
    from cryoforum.protocols import CryoForumProtPredict, CryoForumProtTrain
    from relion.protocols import ProtRelionPreprocessParticles, ProtRelionResizeVolume

    rescaled = launch(ProtRelionPreprocessParticles, "rescale", inputParticles=(imported, "outputParticles"),
                      doScale=True, scaleSize=24, doNormalize=True)
    assert rescaled.outputParticles.getSamplingRate() == pytest.approx(pixel_size * BOX_PX / 24)
    resized = launch(ProtRelionResizeVolume, "resize map", inputVolumes=(reference, "outputVolume"), doRescale=True,
                     rescaleSamplingRate=pixel_size * BOX_PX / 24, doResize=True, resizeSize=24)
    network = launch(CryoForumProtTrain, "train rescaled", inputParticles=(rescaled, "outputParticles"),
                     referenceVolume=(resized, "outputVol"), maxMinutes=0.2, batchSize=32, **CPU)
    oriented = launch(CryoForumProtPredict, "predict rescaled", inputParticles=(rescaled, "outputParticles"),
                      inputNetwork=(network, "outputNetwork"), **CPU)
    good = [truth[i]["rlnCryoforumJunkKind"] == "none" for i in oriented.outputParticles.getIdSet()]
    assert np.median(errors_deg(oriented.outputParticles, truth)[good]) < 10
    volume = reconstruct(launch, oriented, "outputParticles").outputVolume
    assert map_correlation(volume.getFileName(), Path(resized.outputVol.getFileName())) > 0.6


@pytest.fixture(scope="module")
def refined(launch, subset, reference):
    """RELION 3D auto-refine with local searches around our orientations."""
    from relion.protocols import ProtRelionRefine3D

    return launch(ProtRelionRefine3D, "refine", inputParticles=(subset, "outputParticles"),
                  referenceVolume=(reference, "outputVolume"), copyAlignment=True, angularSamplingDeg=3,
                  localSearchAutoSamplingDeg=3, offsetSearchRangePix=2, initialLowPassFilterA=40, doGpu=False,
                  numberOfMpi=3, numberOfThreads=1, useFinerSamplingFaster=True, allParticlesRam=True,
                  maskDiameterA=400)


def test_relion_refines_from_our_orientations_and_postprocesses(launch, refined, reference, data, truth):
    from relion.protocols import ProtRelionCreateMask3D, ProtRelionPostprocess

    good = [truth[i]["rlnCryoforumJunkKind"] == "none" for i in refined.outputParticles.getIdSet()]
    assert np.median(errors_deg(refined.outputParticles, truth)[good]) < 10
    assert refined.outputParticles.getFirstItem().hasAttribute("_cryoforumExpectedError")
    assert map_correlation(refined.outputVolume.getFileName(), data / "map.mrc") > 0.7
    mask = launch(ProtRelionCreateMask3D, "mask", inputVolume=(reference, "outputVolume"), threshold=0.01,
                  initialLowPassFilterA=30)
    post = launch(ProtRelionPostprocess, "postprocess", protRefine=(refined,), solventMask=(mask, "outputMask"),
                  doAutoBfactor=False, bfactor=0)
    assert map_correlation(post.outputVolume.getFileName(), data / "map.mrc") > 0.7


def test_a_relion_refinement_is_our_training_label(launch, refined):
    from cryoforum.protocols import CryoForumProtTrain
    from cryoforum.protocols.protocol_train import FROM_ORIENTATIONS

    protocol = launch(CryoForumProtTrain, "train on labels", inputParticles=(refined, "outputParticles"),
                      learnFrom=FROM_ORIENTATIONS, maxMinutes=0.2, batchSize=16, **CPU)
    star = star_rows(protocol._getExtraPath("input_particles.star"))
    assert "rlnAngleRot" in star[0] and len(star) == refined.outputParticles.getSize()
    assert protocol.outputNetwork.getValidationMedianError() > 0
    assert "refined orientations" in protocol.methods()[0]


# ------------------------- CTF from Scipion's own import of CTFs -------------------------
SPACING_PX = BOX_PX + 8
DEFOCUS_ANGSTROM = {"mic_1": 12000.0, "mic_2": 19000.0}


@pytest.fixture(scope="module")
def micrographs(project, pixel_size):
    """Two micrographs of 25 particles each in the same noise, one defocus for each, and CTFFIND's text files.

    Returns their folder, and dict (micrograph, x, y) -> row of the known pose.
    """
    folder = Path(project.getTmpPath("micrographs")).absolute()
    folder.mkdir()
    truth = {}
    for number, (name, defocus) in enumerate(DEFOCUS_ANGSTROM.items(), start=1):
        run = simulate(folder / f"simulated_{name}", n_particles=25, box_size_px=BOX_PX, snr="inf", seed=number,
                       defocus_min_angstrom=defocus, defocus_max_angstrom=defocus, astigmatism_angstrom=0,
                       shift_rms_px=0)
        places = [(SPACING_PX * (i % 5) + SPACING_PX // 2, SPACING_PX * (i // 5) + SPACING_PX // 2) for i in range(25)]
        truth |= {(name, x, y): row for (x, y), row in zip(places, star_rows(run / "truth.star"), strict=True)}
        write_micrograph(folder / f"{name}.mrc", mrcfile.read(run / "particles.mrcs"), places, pixel_size, number)
        (folder / f"{name}.star").write_text("\ndata_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n"
                                             + "".join(f"{x:.1f} {y:.1f}\n" for x, y in places))
        (folder / f"{name}_ctffind4.txt").write_text(
            "# Output from CTFFind version 4.1.14\n# Columns: number; defocus 1; defocus 2; azimuth; phase shift; "
            f"cross correlation; resolution\n1.0 {defocus} {defocus} 0.0 0.0 0.2 24.0\n")
    return folder, truth


def write_micrograph(path, clean_images, places, pixel_size, seed):
    """Clean images (n, B, B) with their centres at ``places`` (x, y), in noise of twice their variance."""
    picture = np.zeros((5 * SPACING_PX,) * 2)
    half = BOX_PX // 2
    for image, (x, y) in zip(clean_images, places, strict=True):
        picture[y - half:y + half, x - half:x + half] = image
    noise = np.random.default_rng(seed).normal(scale=clean_images.std() * 2**0.5, size=picture.shape)
    with mrcfile.new(path) as mrc:
        mrc.set_data((picture + noise).astype(np.float32))
        mrc.voxel_size = pixel_size


def test_ctf_from_scipions_import_of_ctfs(launch, micrographs, pixel_size, trained):
    """import micrographs, CTFs and coordinates -> RELION extract -> predict: the defocus of each micrograph arrives."""
    from cryoforum.protocols import CryoForumProtPredict
    from pwem.protocols import ProtImportCoordinates, ProtImportCTF, ProtImportMicrographs
    from relion.protocols import ProtRelionExtractParticles

    folder, truth = micrographs
    pictures = launch(ProtImportMicrographs, "micrographs", filesPath=str(folder), filesPattern="mic_?.mrc",
                      samplingRate=pixel_size, voltage=300, sphericalAberration=2.7, amplitudeContrast=0.1)
    ctfs = launch(ProtImportCTF, "CTFs", inputMicrographs=(pictures, "outputMicrographs"), filesPath=str(folder),
                  filesPattern="*_ctffind4.txt")
    picked = launch(ProtImportCoordinates, "coordinates", inputMicrographs=(pictures, "outputMicrographs"),
                    importFrom=ProtImportCoordinates.IMPORT_FROM_RELION, filesPath=str(folder),
                    filesPattern="mic_?.star", boxSize=BOX_PX)
    extracted = launch(ProtRelionExtractParticles, "extract", inputCoordinates=(picked, "outputCoordinates"),
                       ctfRelations=(ctfs, "outputCTF"), boxSize=BOX_PX, doInvert=False, saveFloat16=False,
                       numberOfMpi=1)
    particles = extracted.outputParticles
    assert particles.getSize() == 50 and particles.hasCTF()
    oriented = launch(CryoForumProtPredict, "predict extracted", inputParticles=(extracted, "outputParticles"),
                      inputNetwork=(trained, "outputNetwork"), **CPU)
    defocus = {row["rlnMicrographName"]: row["rlnDefocusU"]
               for row in star_rows(oriented._getExtraPath("input_particles.star"))}
    assert {Path(name).stem: value for name, value in defocus.items()} == DEFOCUS_ANGSTROM
    rows = {}
    for particle in oriented.outputParticles.iterItems():
        coordinate = particle.getCoordinate()
        rows[particle.getObjId()] = truth[Path(coordinate.getMicName()).stem, coordinate.getX(), coordinate.getY()]
    assert np.median(errors_deg(oriented.outputParticles, rows)) < 10


def test_inverted_orientations_and_their_reconstruction_have_the_other_hand(launch, data, pixel_size, tmp_path):
    """What the README advises where the hand of ab initio is the wrong one."""
    from pwem.protocols import ProtAlignmentInvertHand

    known = import_star(launch, data / "truth.star", pixel_size, "import with orientations")
    inverted = launch(ProtAlignmentInvertHand, inputParticles=(known, "outputParticles"))
    volume = reconstruct(launch, inverted, "outputParticles").outputVolume
    with mrcfile.open(data / "map.mrc") as mrc:
        mirrored = np.roll(mrc.data[::-1], 1, axis=0)
    with mrcfile.new(tmp_path / "mirrored.mrc") as mrc:
        mrc.set_data(mirrored)
    assert map_correlation(volume.getFileName(), tmp_path / "mirrored.mrc") > 0.8
    assert map_correlation(volume.getFileName(), data / "map.mrc") < 0.7
