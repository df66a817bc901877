"""The ab initio protocol: its command line, what it refuses, its outputs and what RELION makes of them, and what it
says of a run that goes on, that was stopped, or that did not converge.

A stand-in takes the place of the engine where a test needs a certain course; all else is the real one.
"""

import contextlib
import json
import os
import shlex
import shutil
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from engine_data import engine, engine_defaults, import_star, map_correlation, simulate, star_rows
from particle_sets import make_particles
from pyworkflow.object import Integer

CPU = {"useGpu": False, "numberOfThreads": 2}
N, BOX_PX = 400, 32
LIVE = {"stage": "half maps", "stage_number": 2, "n_stages": 4, "fraction": 0.42, "seconds": 400.0,
        "seconds_left": 1000.0, "resolution_angstrom": 21.3, "message": "round 2 of 5"}


@pytest.fixture(scope="module")
def data(project):
    return simulate(Path(project.getTmpPath("ab_initio")).absolute(), n_particles=N, box_size_px=BOX_PX, snr=1,
                    shift_rms_px=1, junk_fraction=0.1, junk_kinds="noise", seed=3)


@pytest.fixture(scope="module")
def pixel_size(data):
    return json.loads((data / "summary.json").read_text())["pixel_size_angstrom"]


@pytest.fixture(scope="module")
def imported(launch, data, pixel_size):
    return import_star(launch, data / "particles.star", pixel_size, "import for ab initio")


@pytest.fixture(scope="module")
def done(launch, imported):
    """The real engine on a set that it can do."""
    from cryoforum.protocols import CryoForumProtAbInitio

    return launch(CryoForumProtAbInitio, "ab initio", inputParticles=(imported, "outputParticles"), searchSteps=200,
                  trainMinutes=0.2, **CPU)


@pytest.fixture(scope="module")
def finished_run(done):
    return Path(done._runDirectory()).absolute()


@pytest.fixture(scope="module")
def stand_in(project):
    """``with stand_in(...)``: protocols launched in the block have an engine that does as its options say."""
    program = Path(project.getTmpPath("engine_python")).absolute()
    real = os.environ["CRYOFORUM_PYTHON"]
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(real)} {Path(__file__).with_name("stand_in_engine.py")} "$@"\n')
    program.chmod(0o755)

    @contextlib.contextmanager
    def use(**options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CRYOFORUM_PYTHON", str(program))
            patch.setenv("STAND_IN", json.dumps(options))
            yield

    return use


@pytest.fixture(scope="module")
def make(project, imported):
    """make(**parameters) -> a protocol that has its input."""
    from cryoforum.protocols import CryoForumProtAbInitio

    def new(particles=None, **parameters):
        protocol = project.newProtocol(CryoForumProtAbInitio, **{**CPU, **parameters})
        protocol.inputParticles.set(particles or imported)
        protocol.inputParticles.setExtended("outputParticles")
        return protocol

    return new


@pytest.fixture(scope="module")
def not_converged(launch, imported):
    """A network and a map that have seen each image once: the engine ends with exit code 3."""
    from cryoforum.protocols import CryoForumProtAbInitio

    return launch(CryoForumProtAbInitio, "lost", inputParticles=(imported, "outputParticles"), method=1, epochs=1,
                  batchSize=64, **CPU)


# ------------------------- command line -------------------------
def options_of(protocol):
    return {name: value for name, value in protocol._engineOptions().items() if value is not None}


def test_the_form_has_the_engines_defaults(project, make):
    """What the form gives to the engine for both methods, the engine itself would choose."""
    defaults = engine_defaults("AbInitioConfig")
    for method in (0, 1):
        given = options_of(make(method=method))
        own = {"particles", "method", "encoder", "head"}
        assert {name: value for name, value in given.items() if name not in own} == {
            name: defaults[name] for name in given if name not in own}
    assert given["encoder"] == "cryoposenet" and given["head"] == "s2s2"


def test_every_parameter_reaches_the_engine(make):
    hybrid = options_of(make(seeds=3, particleDiameter=120, maxShift=10, resolution=12, searchSteps=50,
                             trainMinutes=2.5, networkBox=16, batchSize=32, learningRate=1e-4, symmetry=" D2 "))
    expected = {"seeds": 3, "particle_diameter_angstrom": 120, "max_shift_angstrom": 10, "resolution_angstrom": 12,
                "search_steps": 50, "train_minutes": 2.5, "network_box_size_px": 16, "batch_size": 32,
                "learning_rate": 1e-4, "symmetry": "d2", "method": "hybrid"}
    assert expected.items() <= hybrid.items()
    assert not {"epochs", "encoder", "head", "n_heads"} & set(hybrid)
    learnt = options_of(make(method=1, epochs=7, encoder=1, head=1, symmetricLoss=True, nHeads=4, seeds=3,
                             maxShift=10, frequencyMarching=True, randomPoseWeight=0.5, perImageAfterEpoch=5))
    assert {"method": "end-to-end", "epochs": 7, "encoder": "cryoforum", "head": "qcqp", "symmetric_loss": True,
            "n_heads": 4, "frequency_marching": True, "random_pose_weight": 0.5,
            "per_image_after_epoch": 5}.items() <= learnt.items()
    assert not {"seeds", "search_steps", "max_shift_angstrom", "hand_reference"} & set(learnt)


def test_a_hand_reference_that_the_form_hides_is_no_input(make, imported):
    for method, n_files in ((0, 2), (1, 1)):
        protocol = make(method=method)
        protocol.handReference.set(imported)
        assert len(protocol._inputFiles()) == n_files


def test_end_to_end_parameters_show_only_for_end_to_end(make):
    protocol = make()
    for method, shown in ((0, False), (1, True)):
        protocol.method.set(method)
        for name in ("epochs", "encoder", "head", "symmetricLoss", "nHeads", "perImageAfterEpoch"):
            assert bool(protocol.evalParamCondition(name)) is shown, name
        for name in ("seeds", "maxShift", "handReference"):
            assert bool(protocol.evalParamCondition(name)) is not shown, name


# ------------------------- validation -------------------------
def test_good_input_has_no_problems(make):
    assert make().validate() == []


def test_all_problems_come_together(make, launch, project):
    from pwem.protocols import ProtImportParticles

    few = make_particles(project.getTmpPath("few"), n=4)
    few.setHasCTF(False)
    few.write()
    few = launch(ProtImportParticles, "few", importFrom=ProtImportParticles.IMPORT_FROM_SCIPION,
                 sqliteFile=few.getFileName(), samplingRate=4.0, voltage=300, sphericalAberration=2.7,
                 amplitudeContrast=0.1)
    text = "\n".join(make(few, symmetry="x", networkBox=17).validate())
    for problem in ("At least 200 particles are needed; the set has 4", "have no CTF", "Unknown symmetry",
                    "network box must be even"):
        assert problem in text


@pytest.mark.parametrize("box", [14, 17, BOX_PX + 2])
def test_a_network_box_that_the_network_cannot_have_is_found_before_the_search(make, box):
    text = "\n".join(make(networkBox=box).validate())
    assert f"network box must be even, at least 16 px and at most the box of the particles; it is {box} px" in text


def test_doubtful_choices_are_warned_about(make):
    assert make().warnings() == []
    assert "larger than the box" in make(particleDiameter=100000).warnings()[0]
    assert "without a GPU" in make(method=1).warnings()[0]


# ------------------------- outputs -------------------------
def test_the_map_has_its_half_maps_and_lies_where_relions_do(done, pixel_size):
    volume = done.outputVolume
    assert volume.getSamplingRate() == pytest.approx(pixel_size) and volume.getXDim() == BOX_PX
    assert len(volume.getHalfMaps(asList=True)) == 2 and all(map(os.path.exists, volume.getHalfMaps(asList=True)))
    assert volume.getOrigin() is None  # as of RELION's own volumes: the middle of the box is the origin
    assert volume.getShiftsFromOrigin() == pytest.approx([-0.5 * BOX_PX * pixel_size] * 3)


def test_it_found_the_molecule(done, finished_run, data, tmp_path):
    """Orientations against the known ones, after alignment of the two frames, which are arbitrary, and of the hand."""
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["converged"], summary["converged_reason"]
    errors = engine("evaluate", particles=finished_run / "particles.star", truth=data / "truth.star",
                    align_frame=True, allow_mirror=True, out=tmp_path / "errors")
    assert json.loads((errors / "summary.json").read_text())["median_error_deg"] < 6


def test_particles_have_orientations_uncertainties_and_the_engines_half_sets(done, imported, finished_run):
    particles = done.outputParticles
    assert particles.getSize() == N and particles.hasAlignmentProj() and particles.hasCTF()
    assert sorted(particles.getIdSet()) == sorted(imported.outputParticles.getIdSet())
    halves = {int(row["rlnParticleId"]): int(row["rlnRandomSubset"])
              for row in star_rows(finished_run / "particles.star")}
    with np.load(finished_run / "orientation_posterior.npz") as arrays:
        expected = dict(zip(arrays["particle_id"].astype(int), arrays["expected_error_deg"], strict=True))
    for particle in particles.iterItems():
        identifier = particle.getObjId()
        assert particle.getAttributeValue("_rlnRandomSubset") == halves[identifier]
        assert particle.getAttributeValue("_cryoforumExpectedError") == pytest.approx(expected[identifier], rel=1e-5)
        assert np.isfinite(particle.getAttributeValue("_cryoforumMatchScore"))


def test_fsc_and_network_describe_themselves(done, pixel_size):
    frequencies, values = done.outputFSC.getData()
    assert len(frequencies) == BOX_PX // 2 + 1 and float(values[0]) == pytest.approx(1, abs=0.01)
    assert float(frequencies[1]) == pytest.approx(1 / (BOX_PX * pixel_size), rel=1e-3)
    network = done.outputNetwork
    assert network.exists() and network.getBoxSize() == BOX_PX and network.getPixelSize() == pytest.approx(pixel_size)
    assert network.getEncoder() == "polar" and network.getNetworkPixelSize() >= pixel_size * 0.99


def test_summary_methods_and_links(done):
    text = "\n".join(done.summary())
    assert "(FSC 0.143)" in text and "Median expected error" in text and "mirror image" in text
    assert "converge" not in text
    assert "400 particles" in done.methods()[0]


@pytest.mark.parametrize(("is_told_apart", "said"), [(True, "(C2) resolved"), (False, "run again with its symmetry")])
def test_the_summary_says_where_half_a_turn_lays_the_map_on_itself(done, monkeypatch, tmp_path, is_told_apart, said):
    assert "Pseudo-symmetry" not in "\n".join(done.summary())
    summary = json.loads((Path(done._runDirectory()) / "summary.json").read_text())
    summary["near_half_turn"] = {"agreement": 0.9, "is_told_apart": is_told_apart}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr(done, "_runDirectory", lambda: str(tmp_path))
    text = "\n".join(done._summary())
    assert "Pseudo-symmetry" in text and said in text


def test_the_network_predicts_at_once(launch, imported, done):
    from cryoforum.protocols import CryoForumProtPredict

    oriented = launch(CryoForumProtPredict, "predict by ab initio", inputParticles=(imported, "outputParticles"),
                      inputNetwork=(done, "outputNetwork"), refinement=0, **CPU)
    assert oriented.outputParticles.getSize() == N


@pytest.fixture(scope="module")
def subset(launch, done):
    from cryoforum.protocols import CryoForumProtSubset

    return launch(CryoForumProtSubset, "subset of ab initio", inputParticles=(done, "outputParticles"))


def test_the_subset_takes_the_particles_and_rejects_junk(subset, data):
    kinds = {int(row["rlnParticleId"]): row["rlnCryoforumJunkKind"] for row in star_rows(data / "truth.star")}
    kept = [kinds[i] for i in subset.outputParticles.getIdSet()]
    rejected = [kinds[i] for i in subset.outputParticlesRejected.getIdSet()]
    assert np.mean([kind != "none" for kind in rejected]) > 0.6 and np.mean([kind == "none" for kind in kept]) > 0.95
    first = subset.outputParticles.getFirstItem()
    assert first.hasAttribute("_rlnRandomSubset") and first.hasAttribute("_cryoforumMatchScore")


def test_the_engine_selects_from_such_a_run(finished_run, tmp_path):
    """``cryoforum select --run`` on a run of ab-initio."""
    engine("select", run=finished_run, out=tmp_path / "select", keep_fraction=0.5)
    assert len(star_rows(tmp_path / "select/selected.star")) == N // 2


# ------------------------- RELION -------------------------
def test_relion_reconstructs_what_the_subset_keeps_and_postprocesses_the_half_maps(launch, done, subset):
    from relion.protocols import ProtRelionCreateMask3D, ProtRelionPostprocess, ProtRelionReconstruct

    halves = [launch(ProtRelionReconstruct, f"reconstruct half {half}", inputParticles=(subset, "outputParticles"),
                     subset=half, doCTF=True).outputVolume for half in (1, 2)]
    assert 0.6 < map_correlation(*(half.getFileName() for half in halves)) < 0.9999
    assert map_correlation(halves[0].getFileName(), done.outputVolume.getFileName()) > 0.7
    assert halves[0].getShiftsFromOrigin() == pytest.approx(done.outputVolume.getShiftsFromOrigin())
    with mrcfile.open(done.outputVolume.getFileName()) as mrc:
        threshold = 0.3 * float(np.percentile(mrc.data, 99.5))
    mask = launch(ProtRelionCreateMask3D, "mask of ab initio", inputVolume=(done, "outputVolume"),
                  threshold=threshold, initialLowPassFilterA=40)
    post = launch(ProtRelionPostprocess, "postprocess ab initio", relionInput=False, inputType=0,
                  inputVolume=(done, "outputVolume"), solventMask=(mask, "outputMask"), doAutoBfactor=False, bfactor=0)
    assert map_correlation(post.outputVolume.getFileName(), done.outputVolume.getFileName()) > 0.7


# ------------------------- not converged -------------------------
def test_a_run_that_did_not_converge_finishes_with_outputs_and_says_so(not_converged):
    assert not_converged.isFinished() and not_converged.outputParticles.getSize() == N
    assert not_converged.outputVolume.hasHalfMaps() and not_converged.outputNetwork.getEncoder() == "cryoposenet"
    text, reason = "\n".join(not_converged.summary()), not_converged._reason()
    assert f"*Did not converge*: {reason}" in text and "relied on" in text and "report.html" in text
    assert not_converged._methods() == []
    assert "Did not converge" in Path(not_converged._getLogsPath("run.stdout")).read_text()


def test_its_box_in_the_project_has_a_warning_sign(not_converged, done):
    for protocol, warned in ((not_converged, True), (done, False)):
        protocol.checkSummaryWarnings()
        protocol.checkSummaryWarnings()
        assert len(protocol.summaryWarnings) == warned
        protocol.summaryWarnings.clear()


def test_continuing_it_is_warned_about(not_converged):
    from pyworkflow.protocol.constants import MODE_RESTART, MODE_RESUME

    not_converged.runMode.set(MODE_RESUME)
    assert any("did not converge" in text for text in not_converged.warnings())
    not_converged.runMode.set(MODE_RESTART)
    assert not any("did not converge" in text for text in not_converged.warnings())


# ------------------------- another course -------------------------
@pytest.fixture(scope="module")
def drawn_run(project, finished_run):
    """The finished run as if the engine had drawn its half sets, without network and FSC."""
    run = Path(project.getTmpPath("drawn")).absolute()
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("checkpoint", "fsc.csv"))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "half_sets": "drawn at random"}))
    return run


def test_half_sets_that_the_engine_cannot_use_are_kept(launch, project, imported, drawn_run, stand_in):
    """All of half 1, but for some that have none: only these get the half set of the new map."""
    from cryoforum.protocols import CryoForumProtAbInitio
    from pwem.objects import SetOfParticles
    from pwem.protocols import ProtImportParticles

    halves = SetOfParticles(filename=project.getTmpPath("halves.sqlite"))
    halves.copyInfo(imported.outputParticles)
    ids = sorted(imported.outputParticles.getIdSet())
    without = set(ids[5:300:2])
    halves.copyItems(imported.outputParticles, updateItemCallback=lambda particle, _: setattr(
        particle, "_rlnRandomSubset", Integer(None if particle.getObjId() in without else 1)))
    halves.write()
    source = launch(ProtImportParticles, "half 1", importFrom=ProtImportParticles.IMPORT_FROM_SCIPION,
                    sqliteFile=halves.getFileName(), samplingRate=halves.getSamplingRate(), voltage=300,
                    sphericalAberration=2.7, amplitudeContrast=0.1)
    with stand_in(run=str(drawn_run)):
        protocol = launch(CryoForumProtAbInitio, "drawn", inputParticles=(source, "outputParticles"), **CPU)
    drawn = {int(row["rlnParticleId"]): int(row["rlnRandomSubset"]) for row in star_rows(drawn_run / "particles.star")}
    after = {p.getObjId(): p.getAttributeValue("_rlnRandomSubset") for p in protocol.outputParticles.iterItems()}
    assert after == {i: drawn[i] if i in without else 1 for i in ids}
    assert any("keep their original half sets" in line for line in protocol.summary())


def test_continue_leaves_no_optional_outputs_of_the_run_before(launch, project, imported, finished_run, drawn_run,
                                                               stand_in):
    from cryoforum.protocols import CryoForumProtAbInitio
    from pyworkflow.protocol.constants import MODE_RESUME

    with stand_in(run=str(finished_run)):
        protocol = launch(CryoForumProtAbInitio, "with network", inputParticles=(imported, "outputParticles"), **CPU)
    assert protocol.outputNetwork.exists() and protocol.outputFSC.getData()
    protocol.seeds.set(1)
    protocol.runMode.set(MODE_RESUME)
    with stand_in(run=str(drawn_run)):
        project.launchProtocol(protocol, wait=True)
    assert protocol.isFinished()
    assert sorted(name for name, _ in protocol.iterOutputAttributes()) == ["outputParticles", "outputVolume"]


# ------------------------- running, stopped -------------------------
@pytest.fixture(scope="module")
def running(project, make, stand_in):
    protocol = make()
    protocol.setObjLabel("running")
    with stand_in(live=LIVE):
        project.launchProtocol(protocol, wait=False)
    deadline = time.monotonic() + 300
    while not os.path.exists(protocol._runFile("progress.json")):
        assert time.monotonic() < deadline, "the engine did not start"
        time.sleep(0.3)
    project._updateProtocol(protocol)
    yield protocol
    if protocol.isActive():
        project.stopProtocol(protocol)


def test_a_running_protocol_tells_how_far_it_is(running):
    text = "\n".join(running.summary())
    for words in ("Stage 2 of 4: *half maps*", "*42 %* done in 7 min, about 17 min left", "*21.3 Å*", "round 2 of 5",
                  "live.html"):
        assert words in text, words


def test_its_viewer_opens_the_live_page_and_waits_with_the_rest(project, running):
    viewer = make_viewer(project, running)
    assert viewer._showReport()[0].path.endswith("live.html")
    for show in (viewer._showMap, viewer._showFsc, viewer._showTable, viewer._showErrors, viewer._showDirections):
        assert type(show()[0]).__name__ == "MessageView"


def test_a_stopped_run_goes_on_with_resume(project, running, stand_in, finished_run):
    from pyworkflow.protocol.constants import MODE_RESUME

    project.stopProtocol(running)
    assert running.isAborted()
    how, where = running._summary()
    assert "run mode *Continue*" in how and "half maps" in where and "left" not in where
    running.runMode.set(MODE_RESUME)
    with stand_in(run=str(finished_run)):
        project.launchProtocol(running, wait=True)
    assert running.isFinished()
    assert json.loads(Path(running._runFile("config.json")).read_text())["resume"] is True
    assert "Going on with the unfinished run" in Path(running._getLogsPath("run.stdout")).read_text()


def test_its_particles_are_judged_and_the_map_can_decide(launch, done):
    """The images are read again through the set, with the poses that it has."""
    from cryoforum.protocols import CryoForumProtSubset
    from cryoforum.protocols.protocol_subset import BY_MAP

    first = done.outputParticles.getFirstItem()
    for name in ("Reason", "ParticleProbability", "ExpectedShiftError", "ShiftErrorBound", "CentreX"):
        assert first.getAttributeValue("_cryoforum" + name) is not None, name
    subset = launch(CryoForumProtSubset, inputParticles=(done, "outputParticles"), criterion=BY_MAP)
    decided = json.loads(Path(subset._selectedFile("summary.json")).read_text())["auto"]
    assert subset.outputParticles.getSize() == round(decided["kept_fraction"] * N)
    assert subset.summary()[1].startswith(("Keep ", "Do not filter"))


# ------------------------- viewer -------------------------
def make_viewer(project, protocol):
    import pyworkflow as pw
    from pyworkflow.viewer import DESKTOP_TKINTER

    Viewer = pw.Config.getDomain().findViewers(protocol, DESKTOP_TKINTER)[0]
    viewer = Viewer(project=project, protocol=protocol)
    viewer.setProtocol(protocol)
    return viewer


def test_the_viewer_has_every_entry(project, done):
    viewer = make_viewer(project, done)
    entries = viewer._getVisualizeDict()
    assert {name for name, _ in viewer._definition.iterParams()} >= set(entries)
    assert viewer._showReport()[0].path.endswith(("report.html",))
    for name in ("showMap", "showFsc", "showErrors", "showScores", "showDirections"):
        plotter, = entries[name](name)
        assert plotter.getFigure().axes, name
    assert len(entries["showMap"]("showMap")[0].getFigure().axes) == 6
    assert type(entries["showTable"]("showTable")[0]).__name__ == "MDView"


def test_predict_has_such_a_viewer_too(project, domain_viewers):
    assert domain_viewers("CryoForumProtPredict") == "CryoForumOrientationsViewer"
    assert domain_viewers("CryoForumProtAbInitio") == "CryoForumAbInitioViewer"


@pytest.fixture
def domain_viewers(project):
    import pyworkflow as pw
    from pyworkflow.viewer import DESKTOP_TKINTER

    def name_of(protocol):
        domain = pw.Config.getDomain()
        return domain.findViewers(project.newProtocol(domain.getProtocols()[protocol]), DESKTOP_TKINTER)[0].__name__

    return name_of
