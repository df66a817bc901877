"""Uncertainty subset: which particles are kept, and that both sets keep everything."""

import numpy as np
import pytest
from particle_sets import make_particles, random_transforms, write_posterior

N = 10
EXPECTED_ERROR, MATCH_SCORE = "_cryoforumExpectedError", "_cryoforumMatchScore"
REASON = "_cryoforumRejectionReason"


@pytest.fixture(scope="module")
def scored(launch, project):
    """scored(label, match scores, expected errors) -> a protocol with a predicted set of these values."""
    from cryoforum.convert import copyWithPredictions, readAttributes, readPredictions
    from pwem.objects import SetOfParticles
    from pwem.protocols import ProtImportParticles

    def run(label, match_score, expected_error_deg=None):
        n = len(match_score)
        folder = project.getTmpPath(label.replace(" ", "_"))
        particles = make_particles(folder, n=n)
        ids, _ = readAttributes(particles, [])
        write_posterior(f"{folder}/posterior.npz", ids, random_transforms(n), 4.0, match_score=match_score,
                        expected_error_deg=expected_error_deg)
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

    protocol = subset(measure=1, criterion=KEEP_FRACTION, keepFraction=0.6)
    kept, rejected = protocol.outputParticles, protocol.outputParticlesRejected
    assert sorted(values(kept, EXPECTED_ERROR).values()) == [3, 6, 9, 12, 15, 18]
    assert sorted(values(rejected, EXPECTED_ERROR).values()) == [21, 24, 27, 30]
    assert set(values(kept, EXPECTED_ERROR)) | set(values(rejected, EXPECTED_ERROR)) == set(range(1, 31, 3))
    assert "Kept *6* of 10" in protocol.summary()[0]


def test_both_sets_keep_everything(subset, predicted):
    from cryoforum.protocols.protocol_subset import KEEP_COUNT

    protocol = subset(measure=0, criterion=KEEP_COUNT, keepCount=7)
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

    protocol = subset(measure=0, criterion=KEEP_COUNT, keepCount=7)
    assert min(values(protocol.outputParticles, MATCH_SCORE).values()) > max(
        values(protocol.outputParticlesRejected, MATCH_SCORE).values())


def test_threshold_is_inclusive_and_knows_which_way_is_better(subset):
    from cryoforum.protocols.protocol_subset import THRESHOLD

    by_error = subset(measure=1, criterion=THRESHOLD, threshold=12)
    assert sorted(values(by_error.outputParticles, EXPECTED_ERROR).values()) == [3, 6, 9, 12]
    by_score = subset(measure=0, criterion=THRESHOLD, threshold=0.5)
    assert min(values(by_score.outputParticles, MATCH_SCORE).values()) >= 0.5
    assert by_score.outputParticles.getSize() == 5


def test_largest_error_ignores_the_measure(subset):
    from cryoforum.protocols.protocol_subset import MAX_ERROR

    protocol = subset(measure=0, criterion=MAX_ERROR, maxError=10)
    assert sorted(values(protocol.outputParticles, EXPECTED_ERROR).values()) == [3, 6, 9]


def test_rejected_particles_say_why(subset):
    from cryoforum.protocols.protocol_subset import MAX_ERROR

    protocol = subset(measure=0, criterion=MAX_ERROR, maxError=10)
    errors = values(protocol.outputParticlesRejected, EXPECTED_ERROR)
    for identifier, reason in values(protocol.outputParticlesRejected, REASON).items():
        assert "expected error" in reason and f"{errors[identifier]:g}" in reason
    assert not protocol.outputParticles.getFirstItem().hasAttribute(REASON)


def test_ids_decide_after_other_protocols_changed_the_set(launch, predicted):
    """Scipion's own filter has removed some and changed the order of rows in between."""
    from cryoforum.protocols import CryoForumProtSubset
    from cryoforum.protocols.protocol_subset import KEEP_COUNT
    from pwem.protocols import ProtSetFilter

    filtered = launch(ProtSetFilter, inputSet=(predicted, "outputParticles"),
                      formula="item._cryoforumExpectedError.get() > 5")
    protocol = launch(CryoForumProtSubset, inputParticles=(filtered, "outputParticles"), measure=1,
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


def test_no_automatic_border_for_dispersions(project, predicted):
    from cryoforum.protocols import CryoForumProtSubset
    from cryoforum.protocols.protocol_subset import AUTOMATIC

    protocol = project.newProtocol(CryoForumProtSubset, criterion=AUTOMATIC, measure=4)
    protocol.inputParticles.set(predicted)
    protocol.inputParticles.setExtended("outputParticles")
    assert any("cannot be found automatically" in problem for problem in protocol.validate())
