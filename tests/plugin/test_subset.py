"""Uncertainty subset: which particles are kept, and that both sets keep everything."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from particle_sets import make_particles, random_transforms, write_posterior, write_stack

N = 10
EXPECTED_ERROR, MATCH_SCORE = "_cryoforumExpectedError", "_cryoforumMatchScore"
REASON = "_cryoforumRejectionReason"
# places in the form's list of measures
BEST, PROBABILITY, BY_SCORE, BY_ERROR, BY_BOUND, BY_MERIT, BY_DISPERSION = range(7)


@pytest.fixture(scope="module")
def scored(launch, project):
    """scored(label, match scores, expected errors, ...) -> a protocol with a predicted set of these values."""
    from cryoforum.convert import copyWithPredictions, readAttributes, readPredictions
    from pwem.objects import SetOfParticles
    from pwem.protocols import ProtImportParticles

    def run(label, match_score, expected_error_deg=None, **verdicts):
        n = len(match_score)
        folder = project.getTmpPath(label.replace(" ", "_"))
        particles = make_particles(folder, n=n)
        ids, _ = readAttributes(particles, [])
        write_posterior(f"{folder}/posterior.npz", ids, random_transforms(n), 4.0, match_score=match_score,
                        expected_error_deg=expected_error_deg, **verdicts)
        output = SetOfParticles(filename=f"{folder}/predicted.sqlite")
        copyWithPredictions(particles, output, readPredictions(f"{folder}/posterior.npz", 4.0))
        output.write()
        return launch(ProtImportParticles, label, importFrom=ProtImportParticles.IMPORT_FROM_SCIPION,
                      sqliteFile=output.getFileName(), samplingRate=4.0, voltage=300, sphericalAberration=2.7,
                      amplitudeContrast=0.1)

    return run


@pytest.fixture(scope="module")
def predicted(scored):
    """10 particles with ids 1, 4, ... whose expected error is 3, 6, ... 30 degrees in a shuffled order of ids."""
    return scored("predicted", np.linspace(0.9, 0.1, N), 3.0 + 3 * np.random.default_rng(3).permutation(N))


@pytest.fixture(scope="module")
def subset(launch, predicted):
    def run(**parameters):
        from cryoforum.protocols import CryoForumProtSubset

        return launch(CryoForumProtSubset, inputParticles=(predicted, "outputParticles"), **parameters)

    return run


def values(particles, name):
    """dict particle id -> value"""
    return {particle.getObjId(): particle.getAttributeValue(name) for particle in particles.iterItems()}


def test_fraction_by_expected_error(subset, predicted):
    from cryoforum.protocols.protocol_subset import KEEP_FRACTION

    protocol = subset(measure=BY_ERROR, criterion=KEEP_FRACTION, keepFraction=0.6)
    kept, rejected = protocol.outputParticles, protocol.outputParticlesRejected
    assert sorted(values(kept, EXPECTED_ERROR).values()) == [3, 6, 9, 12, 15, 18]
    assert sorted(values(rejected, EXPECTED_ERROR).values()) == [21, 24, 27, 30]
    assert set(values(kept, EXPECTED_ERROR)) | set(values(rejected, EXPECTED_ERROR)) == set(range(1, 31, 3))
    assert "Kept *6* of 10" in protocol.summary()[0]


def test_both_sets_keep_everything(subset, predicted):
    from cryoforum.protocols.protocol_subset import KEEP_COUNT

    protocol = subset(measure=BY_SCORE, criterion=KEEP_COUNT, keepCount=7)
    before = {p.getObjId(): p.clone() for p in predicted.outputParticles.iterItems()}
    sizes = []
    for output in (protocol.outputParticles, protocol.outputParticlesRejected):
        sizes.append(output.getSize())
        assert output.hasAlignmentProj() and output.hasCTF() and output.getSamplingRate() == 4.0
        for particle in output.iterItems():
            for name, value in before[particle.getObjId()].getObjDict().items():
                assert particle.getObjDict()[name] == value, name
    assert sizes == [7, 3]


def test_best_count_by_match_score(subset):
    from cryoforum.protocols.protocol_subset import KEEP_COUNT

    protocol = subset(measure=BY_SCORE, criterion=KEEP_COUNT, keepCount=7)
    assert min(values(protocol.outputParticles, MATCH_SCORE).values()) > max(
        values(protocol.outputParticlesRejected, MATCH_SCORE).values())


def test_threshold_is_inclusive_and_knows_which_way_is_better(subset):
    from cryoforum.protocols.protocol_subset import THRESHOLD

    by_error = subset(measure=BY_ERROR, criterion=THRESHOLD, threshold=12)
    assert sorted(values(by_error.outputParticles, EXPECTED_ERROR).values()) == [3, 6, 9, 12]
    by_score = subset(measure=BY_SCORE, criterion=THRESHOLD, threshold=0.5)
    assert min(values(by_score.outputParticles, MATCH_SCORE).values()) >= 0.5
    assert by_score.outputParticles.getSize() == 5


def test_largest_error_ignores_the_measure(subset):
    from cryoforum.protocols.protocol_subset import MAX_ERROR

    protocol = subset(measure=BY_SCORE, criterion=MAX_ERROR, maxError=10)
    assert sorted(values(protocol.outputParticles, EXPECTED_ERROR).values()) == [3, 6, 9]


def test_rejected_particles_say_why(subset):
    from cryoforum.protocols.protocol_subset import MAX_ERROR

    protocol = subset(measure=BY_SCORE, criterion=MAX_ERROR, maxError=10)
    errors = values(protocol.outputParticlesRejected, EXPECTED_ERROR)
    for identifier, reason in values(protocol.outputParticlesRejected, REASON).items():
        assert reason == f"expected-error={errors[identifier]:g}>10"
    assert not protocol.outputParticles.getFirstItem().hasAttribute(REASON)


def test_ids_decide_after_other_protocols_changed_the_set(launch, predicted):
    """Scipion's own filter has removed some and changed the order of rows in between."""
    from cryoforum.protocols import CryoForumProtSubset
    from cryoforum.protocols.protocol_subset import KEEP_COUNT
    from pwem.protocols import ProtSetFilter

    filtered = launch(ProtSetFilter, inputSet=(predicted, "outputParticles"),
                      formula="item._cryoforumExpectedError.get() > 5")
    protocol = launch(CryoForumProtSubset, inputParticles=(filtered, "outputParticles"), measure=BY_ERROR,
                      criterion=KEEP_COUNT, keepCount=2)
    before = values(predicted.outputParticles, EXPECTED_ERROR)
    kept = values(protocol.outputParticles, EXPECTED_ERROR)
    assert sorted(kept.values()) == [6, 9]
    assert all(before[identifier] == value for identifier, value in kept.items())


def test_particles_without_uncertainty_are_refused(project, launch):
    from cryoforum.protocols import CryoForumProtSubset
    from pwem.protocols import ProtImportParticles

    particles = make_particles(project.getTmpPath("plain"), n=4)
    plain = launch(ProtImportParticles, "plain", importFrom=ProtImportParticles.IMPORT_FROM_SCIPION,
                   sqliteFile=particles.getFileName(), samplingRate=4.0, voltage=300, sphericalAberration=2.7,
                   amplitudeContrast=0.1)
    protocol = project.newProtocol(CryoForumProtSubset)
    protocol.inputParticles.set(plain)
    protocol.inputParticles.setExtended("outputParticles")
    assert any('give the output of "predict orientations" or "ab initio"' in problem for problem in protocol.validate())


def test_the_border_between_two_populations_is_found(launch, project, scored):
    """80 particles around 0, 20 junk around -12: the engine's own border parts them."""
    from cryoforum.protocols import CryoForumProtSubset
    from cryoforum.protocols.protocol_subset import AUTOMATIC

    rng = np.random.default_rng(0)
    score = np.concatenate([rng.normal(0, 1, 80), rng.normal(-12, 1.5, 20)])
    source = scored("two populations", rng.permutation(score))
    protocol = launch(CryoForumProtSubset, inputParticles=(source, "outputParticles"), criterion=AUTOMATIC)
    assert min(values(protocol.outputParticles, MATCH_SCORE).values()) > -5
    assert protocol.outputParticles.getSize() == 80 and protocol.outputParticlesRejected.getSize() == 20
    assert "two populations" in protocol.summary()[1]


def test_one_population_is_kept_whole(launch, scored):
    from cryoforum.protocols import CryoForumProtSubset
    from cryoforum.protocols.protocol_subset import AUTOMATIC

    source = scored("one population", np.random.default_rng(1).normal(0, 1, 60))
    protocol = launch(CryoForumProtSubset, inputParticles=(source, "outputParticles"), criterion=AUTOMATIC)
    assert protocol.outputParticles.getSize() == 60 and not hasattr(protocol, "outputParticlesRejected")
    assert "one population" in protocol.summary()[1]


def test_dispersions_are_measures_like_the_others(subset, predicted):
    """The engine gets them from the attributes: the matrices of the network are no part of a set."""
    from cryoforum.protocols.protocol_subset import KEEP_COUNT

    protocol = subset(measure=BY_DISPERSION, criterion=KEEP_COUNT, keepCount=3)
    dispersion = values(predicted.outputParticles, "_cryoforumDispersionMax")
    assert set(values(protocol.outputParticles, EXPECTED_ERROR)) == set(sorted(dispersion, key=dispersion.get)[:3])


def test_largest_error_bound(subset):
    from cryoforum.protocols.protocol_subset import MAX_BOUND

    kept = subset(criterion=MAX_BOUND, maxBound=25).outputParticles
    assert sorted(values(kept, "_cryoforumErrorBound").values()) == [6, 12, 18, 24]


# ------------------------- reasons -------------------------
PIXEL = 4.0
REASONS = ["none"] * 60 + ["ambiguous-orientation"] * 4 + ["not-a-particle"] * 6 + ["off-centre"] * 5 + [
    "another-object"] * 3 + ["overlapping-neighbour"] * 2
ASIDE_PX = np.array([[6.0 + i, -5.0] for i in range(len(REASONS))])


@pytest.fixture(scope="module")
def judged(scored):
    """80 particles whose images were judged; off-centre ones lie at coordinate - ASIDE_PX in their micrograph."""
    n, rng = len(REASONS), np.random.default_rng(5)
    return scored("judged", rng.normal(0, 1, n), rng.uniform(1, 20, n), reason=REASONS,
                  recentre_shift_angstrom=PIXEL * ASIDE_PX)


@pytest.fixture(scope="module")
def cleaned(launch, judged):
    from cryoforum.protocols import CryoForumProtSubset

    return launch(CryoForumProtSubset, "cleaned", inputParticles=(judged, "outputParticles"))


def test_junk_is_rejected_with_its_reason(cleaned):
    """Without a word from the user: by the particle probability. An ambiguous orientation is no junk."""
    kept, rejected = cleaned.outputParticles, cleaned.outputParticlesRejected
    assert kept.getSize() == 64 and rejected.getSize() == 16
    assert set(values(kept, "_cryoforumReason").values()) == {"none", "ambiguous-orientation"}
    assert values(rejected, REASON) == values(rejected, "_cryoforumReason")
    assert "Reasons: 6 not a particle, 5 off centre, 3 another object, 2 overlapping neighbour." in cleaned.summary()
    assert sum(line.startswith("Rejected") for line in cleaned.summary()) == 1


def test_off_centre_particles_are_found_where_they_really_are(launch, project, cleaned):
    """Scipion's own protocol puts the coordinates of the recentre set on the particles."""
    from pwem.objects import Acquisition, Micrograph, SetOfMicrographs
    from pwem.protocols import ProtExtractCoords, ProtImportMicrographs

    recentre = cleaned.outputParticlesRecentre
    assert recentre.getSize() == 5 and recentre.hasAlignment2D()
    assert cleaned.outputParticlesRejected.hasAlignmentProj()
    filename = project.getTmpPath("micrographs.sqlite")
    micrographs = SetOfMicrographs(filename=filename)
    micrographs.setSamplingRate(PIXEL)
    micrographs.setAcquisition(Acquisition(voltage=300, sphericalAberration=2.7, amplitudeContrast=0.1))
    for number in range(1, 21):
        micrograph = Micrograph(location=project.getTmpPath(f"mic_{number}.mrc"))
        micrograph.setMicName(f"mic_{number}.mrc")
        micrograph.setSamplingRate(PIXEL)
        write_stack(micrograph.getFileName(), 1)
        micrographs.append(micrograph)
    micrographs.write()
    pictures = launch(ProtImportMicrographs, "micrographs", importFrom=ProtImportMicrographs.IMPORT_FROM_SCIPION,
                      sqliteFile=filename, samplingRate=PIXEL, voltage=300, sphericalAberration=2.7,
                      amplitudeContrast=0.1)
    extracted = launch(ProtExtractCoords, "coordinates", inputParticles=(cleaned, "outputParticlesRecentre"),
                       inputMicrographs=(pictures, "outputMicrographs"), applyShifts=True)
    rows = [row for row, reason in enumerate(REASONS) if reason == "off-centre"]
    expected = sorted((100 + row - ASIDE_PX[row, 0], 200 + row - ASIDE_PX[row, 1]) for row in rows)
    assert sorted(c.getPosition() for c in extracted.outputCoordinates.iterItems()) == expected


def test_kinds_of_junk_that_may_stay(launch, judged):
    from cryoforum.protocols import CryoForumProtSubset
    from cryoforum.protocols.protocol_subset import BY_REASON

    protocol = launch(CryoForumProtSubset, inputParticles=(judged, "outputParticles"), criterion=BY_REASON,
                      rejectOverlap=False, rejectOtherObject=False)
    assert sorted(values(protocol.outputParticlesRejected, REASON).values()) == ["not-a-particle"] * 6 + [
        "off-centre"] * 5


def test_ambiguous_orientations_go_where_that_is_wished(launch, judged):
    from cryoforum.protocols import CryoForumProtSubset
    from cryoforum.protocols.protocol_subset import BY_REASON

    protocol = launch(CryoForumProtSubset, inputParticles=(judged, "outputParticles"), criterion=BY_REASON,
                      rejectNoParticle=False, rejectOverlap=False, rejectOffCentre=False, rejectOtherObject=False,
                      rejectAmbiguous=True)
    assert sorted(values(protocol.outputParticlesRejected, REASON).values()) == ["ambiguous-orientation"] * 4


@pytest.mark.parametrize("criterion", ["MAX_ERROR", "MAX_BOUND"])
def test_a_limit_of_errors_leaves_out_junk_unless_that_is_not_wanted(launch, judged, criterion):
    from cryoforum.protocols import CryoForumProtSubset, protocol_subset

    good = {"none", "ambiguous-orientation"}
    options = dict(inputParticles=(judged, "outputParticles"), criterion=getattr(protocol_subset, criterion), maxError=10,
                   maxBound=20)
    protocol = launch(CryoForumProtSubset, **options)
    assert max(values(protocol.outputParticles, EXPECTED_ERROR).values()) <= 10
    assert set(values(protocol.outputParticles, "_cryoforumReason").values()) <= good
    beyond = values(protocol.outputParticlesRejected, REASON).values()
    assert "error-beyond-limit" in beyond and "off-centre" in beyond
    with_junk = launch(CryoForumProtSubset, rejectJunk=False, **options).outputParticles
    assert not set(values(with_junk, "_cryoforumReason").values()) <= good
    assert with_junk.getSize() > protocol.outputParticles.getSize()


def problems_of(project, source, **parameters):
    from cryoforum.protocols import CryoForumProtSubset

    protocol = project.newProtocol(CryoForumProtSubset, **parameters)
    protocol.inputParticles.set(source)
    protocol.inputParticles.setExtended("outputParticles")
    return protocol.validate()


def test_criteria_that_the_particles_do_not_allow_are_refused(project, predicted, judged):
    from cryoforum.protocols.protocol_subset import BY_MAP, BY_REASON

    assert any("adaptive refinement" in text for text in problems_of(project, predicted, criterion=BY_REASON))
    unknown = problems_of(project, predicted, measure=PROBABILITY)
    assert any("no particle probability" in text for text in unknown)
    assert any("At least 160 particles" in text for text in problems_of(project, judged, criterion=BY_MAP))
    none = dict.fromkeys(["rejectNoParticle", "rejectOverlap", "rejectOffCentre", "rejectOtherObject"], False)
    assert any("No kind of junk" in text for text in problems_of(project, judged, criterion=BY_REASON, **none))
    assert any("Unknown symmetry" in text for text in problems_of(project, judged, symmetry="q7"))
    assert not problems_of(project, judged, criterion=BY_REASON)


# ------------------------- what other protocols and Continue leave behind -------------------------
def import_set(launch, particles, label, **options):
    from pwem.protocols import ProtImportParticles

    return launch(ProtImportParticles, label, importFrom=ProtImportParticles.IMPORT_FROM_SCIPION,
                  sqliteFile=particles.getFileName(), samplingRate=PIXEL, voltage=300, sphericalAberration=2.7,
                  amplitudeContrast=0.1, **options)


@pytest.fixture(scope="module")
def unaligned(launch, project, judged):
    """The judged particles as a 2D classification leaves them: what is known of each, but no orientations."""
    from pwem.constants import ALIGN_NONE
    from pwem.objects import SetOfParticles

    output = SetOfParticles(filename=project.getTmpPath("unaligned.sqlite"))
    output.copyInfo(judged.outputParticles)
    output.setAlignment(ALIGN_NONE)
    output.copyItems(judged.outputParticles, updateItemCallback=lambda particle, _: delattr(particle, "_transform"))
    output.write()
    protocol = import_set(launch, output, "unaligned")
    assert not protocol.outputParticles.hasAlignmentProj()
    return protocol


def test_junk_is_rejected_without_orientations_too(launch, unaligned):
    from cryoforum.protocols import CryoForumProtSubset
    from cryoforum.protocols.protocol_subset import AUTOMATIC, BY_REASON

    options = dict(inputParticles=(unaligned, "outputParticles"))
    for criterion in (AUTOMATIC, BY_REASON):
        protocol = launch(CryoForumProtSubset, criterion=criterion, **options)
        assert protocol.outputParticles.getSize() == 64 and protocol.outputParticlesRejected.getSize() == 16
        rejected = protocol.outputParticlesRejected
        assert values(rejected, REASON) == values(rejected, "_cryoforumReason")
    recentre = {p.getObjId(): p.getTransform().getMatrix()[:2, 3] for p in protocol.outputParticlesRecentre.iterItems()}
    rows = [row for row, reason in enumerate(REASONS) if reason == "off-centre"]
    np.testing.assert_allclose([recentre[1 + 3 * row] for row in rows], ASIDE_PX[rows], atol=1e-4)


@pytest.mark.parametrize("criterion", ["MAX_ERROR", "MAX_BOUND"])
def test_a_limit_of_errors_leaves_out_junk_without_orientations_too(launch, unaligned, criterion):
    from cryoforum.protocols import CryoForumProtSubset, protocol_subset

    kept = launch(CryoForumProtSubset, inputParticles=(unaligned, "outputParticles"), maxError=10, maxBound=20,
                  criterion=getattr(protocol_subset, criterion)).outputParticles
    assert set(values(kept, "_cryoforumReason").values()) <= {"none", "ambiguous-orientation"}


def test_continue_leaves_no_outputs_of_the_run_before(launch, project, judged):
    """The first run rejects and recentres some; with another criterion all are kept."""
    from cryoforum.protocols import CryoForumProtSubset
    from cryoforum.protocols.protocol_subset import THRESHOLD
    from pyworkflow.protocol.constants import MODE_RESUME

    def outputs(protocol):
        return {name: output.getSize() for name, output in protocol.iterOutputAttributes()}

    protocol = launch(CryoForumProtSubset, "first all, then none", inputParticles=(judged, "outputParticles"))
    assert outputs(protocol) == {"outputParticles": 64, "outputParticlesRejected": 16, "outputParticlesRecentre": 5}
    protocol.criterion.set(THRESHOLD)
    protocol.measure.set(PROBABILITY)
    protocol.threshold.set(0)
    protocol.runMode.set(MODE_RESUME)
    project.launchProtocol(protocol, wait=True)
    assert protocol.isFinished() and outputs(protocol) == {"outputParticles": 80}
    assert "Kept *80* of 80 particles (100.0 %), rejected 0." in protocol.summary()[0]
    assert not any("off-centre" in line for line in protocol.summary())
    # and so it is written in the project's own file
    assert outputs(project.mapper.selectById(protocol.getObjId())) == {"outputParticles": 80}
    # back again
    protocol.criterion.set(0)
    protocol.measure.set(BEST)
    project.launchProtocol(protocol, wait=True)
    assert outputs(protocol) == {"outputParticles": 64, "outputParticlesRejected": 16, "outputParticlesRecentre": 5}


def test_particles_that_are_kept_after_all_have_no_reason_of_rejection(launch, cleaned):
    from cryoforum.protocols import CryoForumProtSubset
    from cryoforum.protocols.protocol_subset import KEEP_COUNT

    protocol = launch(CryoForumProtSubset, inputParticles=(cleaned, "outputParticlesRejected"), criterion=KEEP_COUNT,
                      measure=BY_ERROR, keepCount=10)
    kept, rejected = values(protocol.outputParticles, REASON), values(protocol.outputParticlesRejected, REASON)
    assert kept and set(kept.values()) == {None}
    assert rejected and all(reason for reason in rejected.values())


@pytest.fixture
def classified(project, predicted):
    """A protocol with particles of predict that went through a 3D classification and a subset of its classes."""
    from cryoforum.convert import reopen
    from cryoforum.protocols import CryoForumProtPredict, CryoForumProtSubset
    from pwem.objects import SetOfClasses3D
    from pwem.protocols import ProtUserSubSet
    from relion.protocols import ProtRelionClassify3D

    def follow(Protocol, parameter, before, output, made):
        protocol = project.newProtocol(Protocol)
        if parameter is not None:
            getattr(protocol, parameter).set(before)
            getattr(protocol, parameter).setExtended(output)
        project.saveProtocol(protocol)
        os.makedirs(protocol._getPath(), exist_ok=True)
        if made is not None:
            protocol._defineOutputs(**made(protocol))
        return protocol

    def particles_of(protocol):
        # a set of its own: another one may still be read from the first, and its file is locked then
        particles = protocol._createSetOfParticles()
        particles.copyInfo(predicted.outputParticles)
        particles.copyItems(reopen(predicted.outputParticles))
        return {"outputParticles": particles}

    def classes_of(protocol):
        classes = SetOfClasses3D(filename=protocol._getPath("classes.sqlite"))
        classes.setImages(found.outputParticles)
        return {"outputClasses": classes}

    found = follow(CryoForumProtPredict, None, None, None, particles_of)
    grouped = follow(ProtRelionClassify3D, "inputParticles", found, "outputParticles", classes_of)
    chosen = follow(ProtUserSubSet, "inputObject", grouped, "outputClasses", particles_of)
    return found, follow(CryoForumProtSubset, "inputParticles", chosen, "outputParticles", None)


def test_the_run_that_found_the_orientations_is_found_through_classes(classified):
    from cryoforum.protocols.source import findSource

    found, subset = classified
    os.makedirs(found._runDirectory())
    for name, content in (("config.json", {"ctf_state": "multiplied"}), ("summary.json", {"symmetry": "d2"})):
        Path(found._runDirectory(), name).write_text(json.dumps(content))
    source = findSource(subset)
    assert source.directory == found._runDirectory() and source.symmetry == "d2"
    assert source.options == {"ctf_state": "multiplied"}


def test_without_that_run_the_set_says_how_its_ctf_was_corrected(launch, predicted):
    from cryoforum.protocols import CryoForumProtSubset

    flipped = import_set(launch, predicted.outputParticles, "flipped", haveDataBeenPhaseFlipped=True)
    for source, state in ((predicted, "auto"), (flipped, "phase-flipped")):
        subset = launch(CryoForumProtSubset, inputParticles=(source, "outputParticles"))
        assert json.loads(Path(subset._measuredFile("config.json")).read_text())["ctf_state"] == state


@pytest.mark.parametrize("fraction, problem", [(0, "must be above 0"), (1.5, "must be at most 1")])
def test_a_fraction_that_the_engine_refuses(project, predicted, fraction, problem):
    from cryoforum.protocols.protocol_subset import KEEP_FRACTION

    text = "\n".join(problems_of(project, predicted, criterion=KEEP_FRACTION, keepFraction=fraction))
    assert problem in text
    assert not problems_of(project, predicted, criterion=KEEP_FRACTION, keepFraction=1)


# ------------------------- viewer -------------------------
def make_viewer(project, protocol):
    import pyworkflow as pw
    from pyworkflow.viewer import DESKTOP_TKINTER

    viewer = pw.Config.getDomain().findViewers(protocol, DESKTOP_TKINTER)[0](project=project, protocol=protocol)
    viewer.setProtocol(protocol)
    return viewer


def test_the_viewer_shows_what_was_kept(project, cleaned):
    viewer = make_viewer(project, cleaned)
    assert type(viewer).__name__ == "CryoForumSubsetViewer"
    entries = viewer._getVisualizeDict()
    assert {name for name, _ in viewer._definition.iterParams()} >= set(entries)
    assert viewer._showReport()[0].path.endswith("select/report.html")
    axes, = viewer._showErrors()[0].getFigure().axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["kept", "rejected"]
    before, after = viewer._showDirections()
    assert "80 particles" in before.getFigure().axes[0].get_title() and "64" in after.getFigure().axes[0].get_title()
    for name in ("showKept", "showRejected", "showRecentre"):
        assert type(entries[name](name)[0]).__name__ == "MDView"
    # the set was imported: nobody knows the run that found the orientations
    assert type(viewer._showReliability()[0]).__name__ == "MessageView"


def test_a_limit_in_the_viewer_is_shown_and_makes_a_new_subset(project, cleaned, judged):
    """A run of its own beside the first, whose outputs stay; nothing is predicted."""
    viewer = make_viewer(project, cleaned)
    viewer.limit.set(8)
    axes, = viewer._showLimit()[0].getFigure().axes
    errors, reasons = (values(judged.outputParticles, name) for name in (EXPECTED_ERROR, "_cryoforumReason"))
    within = {i for i, error in errors.items() if error <= 8 and reasons[i] in ("none", "ambiguous-orientation")}
    assert any(f"within: {len(within)} of 64 particles" in text.get_text() for text in axes.get_legend().get_texts())
    runs_before = {run.getObjId() for run in project.getRuns()}
    assert "was started" in viewer._makeSubset()[0].getMessage()
    subset, = (run for run in project.getRuns() if run.getObjId() not in runs_before)
    for _ in range(600):
        project._updateProtocol(subset)
        if not subset.isActive() and subset.getStatus() != "launched":
            break
        time.sleep(0.5)
    subset = project.getProtocol(subset.getObjId(), fromRuns=False)
    assert subset.isFinished() and subset.getObjLabel() == "expected error (degrees) at most 8"
    assert set(subset.outputParticles.getIdSet()) == within
    assert cleaned.outputParticles.getSize() == 64


def test_a_limit_that_is_not_known_is_no_new_run(project, predicted, subset):
    from cryoforum.protocols.protocol_subset import KEEP_COUNT

    viewer = make_viewer(project, subset(measure=BY_SCORE, criterion=KEEP_COUNT, keepCount=8))
    viewer.limitMeasure.set(2)
    runs_before = len(project.getRuns())
    assert type(viewer._showLimit()[0]).__name__ == "MessageView"
    assert "no particle probability" in viewer._makeSubset()[0].getMessage()
    assert len(project.getRuns()) == runs_before


@pytest.mark.parametrize("measure, criterion", [(0, "MAX_ERROR"), (1, "MAX_BOUND")])
def test_a_limit_of_errors_in_the_viewer_leaves_out_junk_whatever_the_first_subset_did(
        project, judged, monkeypatch, measure, criterion):
    from cryoforum.protocols import CryoForumProtSubset, protocol_subset

    first = project.newProtocol(CryoForumProtSubset, criterion=getattr(protocol_subset, criterion), rejectJunk=False)
    first.inputParticles.set(judged)
    first.inputParticles.setExtended("outputParticles")
    project.saveProtocol(first)
    launched = []
    monkeypatch.setattr(project, "launchProtocol", launched.append)
    viewer = make_viewer(project, first)
    viewer.limitMeasure.set(measure)
    assert "was started" in viewer._makeSubset()[0].getMessage()
    assert launched[0].rejectJunk.get() and launched[0].criterion == getattr(protocol_subset, criterion)
    assert not first.rejectJunk.get()
