"""Scipion sets to the engine's STAR and back. RELION's own conversion (scipion-em-relion) is the judge."""

import mrcfile
import numpy as np
import pytest
from emtable import Table
from particle_sets import make_particles, random_transforms, write_posterior, write_stack
from pwem.emlib.image import ImageHandler
from pwem.objects import SetOfParticles, Transform, Volume
from pyworkflow.object import Float

PIXEL_SIZE_ANGSTROM = 4.0


@pytest.fixture
def folder(project, tmp_path):
    return tmp_path


def rows(star, table="particles"):
    return [row._asdict() for row in Table(fileName=str(star), tableName=table)]


def test_columns_are_read_in_id_order_without_the_disabled(folder):
    from cryoforum.convert import readAttributes, readColumns

    particles = make_particles(str(folder), n=6, first_id=5, disabled=(2,))
    columns = readColumns(particles, ["id", "_ctfModel._defocusU", "_noSuchAttribute"])
    assert columns == {"id": [5, 8, 11, 14, 17, 20],
                       "_ctfModel._defocusU": [12000, 12100, 12200, 12300, 12400, 12500]}
    ids, values = readAttributes(particles, ["_ctfModel._defocusAngle"])
    assert ids.tolist() == [5, 8, 14, 17, 20]
    assert values["_ctfModel._defocusAngle"].tolist() == [10, 11, 13, 14, 15]


def test_a_class_of_a_set_of_classes_is_read_through_its_prefix(folder):
    """Class001 of a classification lives beside other tables of the same file."""
    from cryoforum.convert import readColumns

    particles = make_particles(str(folder), n=4)
    prefixed = SetOfParticles(filename=str(folder / "classes.sqlite"), prefix="Class001")
    prefixed.copyInfo(particles)
    prefixed.copyItems(particles, rowFilter=lambda row: row["id"] > 4)
    prefixed.write()
    assert readColumns(prefixed, ["id"]) == {"id": [7, 10]}
    output, _ = predicted(prefixed, folder, expected_error_deg=[5, 6])
    assert [(p.getObjId(), p._cryoforumExpectedError.get()) for p in output] == [(7, 5), (10, 6)]


def test_star_agrees_with_relions_conversion(folder):
    """Angles, shifts, CTF and optics of our STAR are those that scipion-em-relion writes for the same set."""
    import relion.convert
    from cryoforum.convert import writeParticlesStar

    particles = make_particles(str(folder), n=20)
    ours, theirs = folder / "ours.star", folder / "theirs.star"
    assert writeParticlesStar(particles, str(ours)) == 20
    relion.convert.writeSetOfParticles(particles, str(theirs), alignType="Projection")
    for our_row, their_row in zip(rows(ours), rows(theirs), strict=True):
        for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"):
            difference = (our_row[name] - their_row[name] + 180) % 360 - 180
            assert difference == pytest.approx(0, abs=2e-5)
        for name in ("rlnOriginXAngst", "rlnOriginYAngst", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle",
                     "rlnRandomSubset", "rlnCoordinateX", "rlnCoordinateY"):
            assert our_row[name] == pytest.approx(their_row[name], abs=2e-5), name
    our_optics, their_optics = rows(ours, "optics")[0], rows(theirs, "optics")[0]
    for name in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize", "rlnImageSize"):
        assert our_optics[name] == pytest.approx(their_optics[name]), name


def test_star_is_what_relions_reader_makes_the_same_set_of(folder):
    """Write ours, read with relion.convert: the matrices are those of the first set."""
    import relion.convert
    from cryoforum.convert import writeParticlesStar

    particles = make_particles(str(folder), n=20)
    star = folder / "ours.star"
    writeParticlesStar(particles, str(star))
    back = SetOfParticles(filename=str(folder / "back.sqlite"))
    back.setSamplingRate(PIXEL_SIZE_ANGSTROM)
    relion.convert.readSetOfParticles(str(star), back, alignType="Projection")
    for before, after in zip(particles.iterItems(), back.iterItems(), strict=True):
        np.testing.assert_allclose(after.getTransform().getMatrix(), before.getTransform().getMatrix(), atol=1e-5)


@pytest.mark.parametrize("tilt_deg", [0.0, 180.0])
def test_views_along_the_axis_keep_their_matrix(tilt_deg):
    """At tilt 0 and 180 rot and psi are not defined one by one; the rotation still is."""
    from cryoforum.convert import transformsToRelion
    from scipy.spatial.transform import Rotation

    a = Rotation.from_euler("ZYZ", [[35, tilt_deg, -120], [-170, tilt_deg, 80]], degrees=True).inv().as_matrix()
    transforms = np.tile(np.eye(4), (2, 1, 1))
    transforms[:, :3, :3] = np.transpose(a, (0, 2, 1))
    angles_deg, _ = transformsToRelion(transforms)
    again = Rotation.from_euler("ZYZ", angles_deg, degrees=True).inv().as_matrix()
    np.testing.assert_allclose(again, a, atol=1e-6)


def test_poses_can_be_left_out(folder):
    from cryoforum.convert import writeParticlesStar

    writeParticlesStar(make_particles(str(folder)), str(folder / "ours.star"), withPoses=False)
    assert "rlnAngleRot" not in rows(folder / "ours.star")[0]


def test_ids_and_images_are_those_of_the_set(folder):
    from cryoforum.convert import writeParticlesStar

    particles = make_particles(str(folder), n=5, first_id=7, disabled=(1, 3))
    writeParticlesStar(particles, str(folder / "ours.star"))
    written = rows(folder / "ours.star")
    assert [row["rlnParticleId"] for row in written] == [7, 13, 19]
    stack = folder / "particles.mrcs"
    assert [row["rlnImageName"] for row in written] == [f"{i:06d}@{stack}" for i in (1, 3, 5)]


def test_each_voltage_becomes_an_optics_group(folder):
    from cryoforum.convert import writeParticlesStar

    particles = make_particles(str(folder), n=4)
    joined = SetOfParticles(filename=str(folder / "joined.sqlite"))
    joined.copyInfo(particles)

    def change_voltage(particle, _):
        particle.getAcquisition().setVoltage(300 if particle.getObjId() < 5 else 200)

    joined.copyItems(particles, updateItemCallback=change_voltage)
    joined.write()
    writeParticlesStar(joined, str(folder / "ours.star"))
    assert [row["rlnOpticsGroup"] for row in rows(folder / "ours.star")] == [1, 1, 2, 2]
    assert [row["rlnVoltage"] for row in rows(folder / "ours.star", "optics")] == [300, 200]


def test_stacks_of_other_formats_become_mrc(folder):
    """The engine reads MRC; Scipion's Spider, IMAGIC and HDF stacks are copied."""
    from cryoforum.convert import writeParticlesStar

    particles = make_particles(str(folder), n=4)
    spider = str(folder / "images.stk")
    ImageHandler().convertStack(str(folder / "particles.mrcs"), spider)
    moved = SetOfParticles(filename=str(folder / "moved.sqlite"))
    moved.copyInfo(particles)
    moved.copyItems(particles, updateItemCallback=lambda item, _: item.setFileName(spider))
    moved.write()
    writeParticlesStar(moved, str(folder / "ours.star"), str(folder / "stacks"))
    copy = rows(folder / "ours.star")[0]["rlnImageName"].split("@")[1]
    with mrcfile.open(folder / "particles.mrcs") as original, mrcfile.open(copy) as copied:
        np.testing.assert_allclose(copied.data, original.data, atol=1e-6)


def test_a_path_with_a_space_is_refused(folder):
    from cryoforum.convert import writeParticlesStar

    particles = make_particles(str(folder / "my data"))
    with pytest.raises(ValueError, match="spaces"):
        writeParticlesStar(particles, str(folder / "ours.star"))


def test_reference_gets_scipions_pixel_size(folder):
    from cryoforum.convert import writeReferenceMap

    data = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    with mrcfile.new(folder / "map.mrc") as mrc:
        mrc.set_data(data)
        mrc.voxel_size = 1.0
    volume = Volume(location=str(folder / "map.mrc"))
    volume.setSamplingRate(3.54)
    writeReferenceMap(volume, str(folder / "reference.mrc"))
    with mrcfile.open(folder / "reference.mrc") as mrc:
        assert mrc.voxel_size.x == pytest.approx(3.54)
        np.testing.assert_array_equal(mrc.data, data)


def predicted(particles, folder, **posterior):
    """A set with the predictions of a posterior file, as the protocol makes it."""
    from cryoforum.convert import copyWithPredictions, readAttributes, readPredictions

    ids = posterior.pop("ids", None)
    ids = readAttributes(particles, [])[0] if ids is None else ids
    transforms = random_transforms(len(ids), seed=5)
    write_posterior(folder / "posterior.npz", ids, transforms, PIXEL_SIZE_ANGSTROM, **posterior)
    (folder / "output.sqlite").unlink(missing_ok=True)
    output = SetOfParticles(filename=str(folder / "output.sqlite"))
    copyWithPredictions(particles, output, readPredictions(str(folder / "posterior.npz"), PIXEL_SIZE_ANGSTROM))
    output.write()
    return output, dict(zip(ids, transforms, strict=True))


def test_everything_a_particle_had_survives(folder):
    particles = make_particles(str(folder), n=9, aligned=False, disabled=(4,))
    output, transforms = predicted(particles, folder)
    assert output.hasAlignmentProj() and output.hasCTF() and output.getSize() == 8
    assert output.getSamplingRate() == PIXEL_SIZE_ANGSTROM
    assert output.getAcquisition().getVoltage() == 300
    before = {p.getObjId(): p.clone() for p in particles.iterItems()}
    for particle in output.iterItems():
        original = before[particle.getObjId()]
        for name, value in original.getObjDict().items():
            if not name.startswith("_transform"):
                assert particle.getObjDict()[name] == value, name
        np.testing.assert_allclose(particle.getTransform().getMatrix(), transforms[particle.getObjId()], atol=1e-9)


def test_every_particle_gets_its_own_uncertainty(folder):
    particles = make_particles(str(folder), n=9)
    output, _ = predicted(particles, folder, expected_error_deg=np.arange(9) + 0.5)
    values = [(p.getObjId(), p._cryoforumExpectedError.get(), p._cryoforumErrorBound.get()) for p in output]
    assert values == [(1 + 3 * i, i + 0.5, 2 * i + 1.0) for i in range(9)]
    first = output.getFirstItem()
    for name in ("FigureOfMerit", "MatchScore", "DispersionMax", "DispersionTrace", "DispersionWigner"):
        assert isinstance(first.getAttributeValue("_cryoforum" + name), float)


def test_what_the_images_are_and_how_far_off_their_shifts(folder):
    particles = make_particles(str(folder), n=3)
    aside = np.array([[0, 0], [30, -22], [0, 0]])
    reasons = ["none", "off-centre", "ambiguous-orientation"]
    output, transforms = predicted(particles, folder, expected_error_deg=[1, 2, 3], reason=reasons,
                                   recentre_shift_angstrom=aside)
    rows = [{name.removeprefix("_cryoforum"): value for name, value in particle.getObjDict().items()}
            for particle in output.iterItems()]
    assert [row["Reason"] for row in rows] == reasons
    assert [round(row["ParticleProbability"], 1) for row in rows] == [0.9, 0.0, 0.9]
    assert [row["ExpectedShiftError"] for row in rows] == pytest.approx([0.1, 0.2, 0.3])
    assert [row["ShiftErrorBound"] for row in rows] == pytest.approx([0.2, 0.4, 0.6])
    # the centre is where the particle is: by its own shift, or aside
    assert [rows[1]["CentreX"], rows[1]["CentreY"]] == [30, -22]
    own = np.linalg.inv(transforms[1])[:2, 3] * -PIXEL_SIZE_ANGSTROM
    assert [rows[0]["CentreX"], rows[0]["CentreY"]] == pytest.approx(own)


def test_the_engines_arrays_come_back_as_they_were(folder):
    from cryoforum.convert import writePosterior

    aside = np.array([[0, 0], [30, -22], [0, 0]])
    particles = make_particles(str(folder), n=3)
    output, _ = predicted(particles, folder, reason=["none", "off-centre", "another-object"],
                          recentre_shift_angstrom=aside)
    writePosterior(output, str(folder / "again.npz"))
    with np.load(folder / "posterior.npz") as before, np.load(folder / "again.npz") as after:
        for name in set(before) & set(after) - {"quaternion", "alternative_quaternion"}:
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
        np.testing.assert_allclose(np.abs((after["quaternion"] * before["quaternion"]).sum(1)), 1)
        assert {"reason", "particle_probability", "recentre_shift_angstrom", "dispersion_max"} <= set(after)


def test_states_go_through_scipion(folder):
    from cryoforum.convert import writePosterior

    particles = make_particles(str(folder), n=3)
    output, _ = predicted(particles, folder, state=[1, 2, 0], minor_state_probability=[0.1, 0.9, 0.0])
    assert [particle.getAttributeValue("_cryoforumState") for particle in output.iterItems()] == [1, 2, 0]
    writePosterior(output, str(folder / "again.npz"))
    with np.load(folder / "again.npz") as arrays:
        assert arrays["state"].tolist() == [1, 2, 0]
        np.testing.assert_allclose(arrays["minor_state_probability"], [0.1, 0.9, 0.0])


def test_the_other_orientation_goes_through_scipion(folder):
    from cryoforum.convert import writePosterior

    other = np.array([[np.nan] * 4, [0.5, -0.5, 0.5, 0.5], [0, 0, 0.6, 0.8]])
    particles = make_particles(str(folder), n=3)
    output, _ = predicted(particles, folder, reason=["none", "ambiguous-orientation", "ambiguous-orientation"],
                          alternative_quaternion=other)
    texts = [particle.getAttributeValue("_cryoforumAlternative") for particle in output.iterItems()]
    assert texts[0] == "none" and [len(text.split()) for text in texts[1:]] == [3, 3]
    writePosterior(output, str(folder / "again.npz"))
    with np.load(folder / "again.npz") as arrays:
        again = arrays["alternative_quaternion"]
    assert np.isnan(again[0]).all()
    np.testing.assert_allclose(np.abs((again[1:] * other[1:]).sum(1)), 1, atol=1e-6)


def test_what_an_earlier_prediction_knew_more_does_not_stay(folder):
    particles = make_particles(str(folder), n=3)
    once, _ = predicted(particles, folder, reason=["none", "none", "not-a-particle"])
    (folder / "again").mkdir()
    twice, _ = predicted(once, folder / "again", match_score=np.full(3, np.nan))
    for particle in twice.iterItems():
        for name in ("Reason", "ParticleProbability", "MatchScore", "ExpectedShiftError"):
            assert particle.getAttributeValue("_cryoforum" + name) is None, name


def test_results_are_joined_by_id_not_by_row(folder):
    particles = make_particles(str(folder), n=6)
    shuffled = np.array([16, 1, 10, 4, 13, 7])
    output, transforms = predicted(particles, folder, ids=shuffled, expected_error_deg=shuffled * 2.0)
    for particle in output.iterItems():
        assert particle._cryoforumExpectedError.get() == 2.0 * particle.getObjId()
        np.testing.assert_allclose(particle.getTransform().getMatrix(), transforms[particle.getObjId()], atol=1e-9)


def test_a_missing_id_stops_with_a_message(folder):
    particles = make_particles(str(folder), n=6)
    with pytest.raises(ValueError, match=r"2 of 6 particles have no result \(ids 10, 16\)"):
        predicted(particles, folder, ids=np.array([1, 4, 7, 13]))


def test_an_id_that_comes_twice_stops(folder):
    particles = make_particles(str(folder), n=3)
    with pytest.raises(ValueError, match="twice"):
        predicted(particles, folder, ids=np.array([1, 4, 7, 7]))


def test_a_result_that_is_not_a_number_stops(folder):
    particles = make_particles(str(folder), n=3)
    with pytest.raises(ValueError, match=r"ExpectedError is not finite for 1 particles \(ids 4\)"):
        predicted(particles, folder, expected_error_deg=[1, np.nan, 3])


def test_network_alone_gives_no_match_score(folder):
    particles = make_particles(str(folder), n=3)
    output, _ = predicted(particles, folder, match_score=np.full(3, np.nan))
    assert not output.getFirstItem().hasAttribute("_cryoforumMatchScore")


def test_predicting_again_replaces_the_first_result(folder):
    particles = make_particles(str(folder), n=3)
    once, _ = predicted(particles, folder, expected_error_deg=[1, 2, 3])
    (folder / "again").mkdir()
    twice, transforms = predicted(once, folder / "again", expected_error_deg=[7, 8, 9])
    assert [p._cryoforumExpectedError.get() for p in twice] == [7, 8, 9]


def test_poses_of_a_star_file_are_those_of_the_posterior(folder):
    """Where the engine's orientations have no uncertainties there is particles.star alone."""
    from cryoforum.convert import copyWithPredictions, readPoses, writeParticlesStar

    particles = make_particles(str(folder), n=9)
    writeParticlesStar(particles, str(folder / "poses.star"))
    output = SetOfParticles(filename=str(folder / "out.sqlite"))
    copyWithPredictions(particles, output, readPoses(str(folder / "poses.star"), PIXEL_SIZE_ANGSTROM),
                        {particle.getObjId(): 2 for particle in particles.iterItems()})
    before = {p.getObjId(): p.getTransform().getMatrix().copy() for p in particles.iterItems()}
    for particle in output.iterItems():
        assert np.allclose(particle.getTransform().getMatrix(), before[particle.getObjId()], atol=1e-5)
        assert not hasattr(particle, "_cryoforumMatchScore")
    # the half sets that particles have are not replaced
    assert [p.getAttributeValue("_rlnRandomSubset") for p in output.iterItems()] == [
        p.getAttributeValue("_rlnRandomSubset") for p in particles.iterItems()]


def test_a_posterior_with_pickled_objects_is_not_loaded(folder):
    from cryoforum.convert import readPredictions

    np.savez(folder / "bad.npz", eigenvalues=np.array([Transform()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        readPredictions(str(folder / "bad.npz"), 1.0)


def test_particles_without_a_phase_plate_have_no_phase_shift(folder):
    """In a set joined of two sessions only some particles have one."""
    from cryoforum.convert import writeParticlesStar

    def add_phase_shift(particle, _):
        particle.getCTF()._phaseShift = Float(85.0 if particle.getObjId() < 5 else None)

    particles = make_particles(str(folder), n=4)
    mixed = SetOfParticles(filename=str(folder / "mixed.sqlite"))
    mixed.copyInfo(particles)
    mixed.copyItems(particles, updateItemCallback=add_phase_shift)
    mixed.write()
    writeParticlesStar(mixed, str(folder / "ours.star"))
    assert [row["rlnPhaseShift"] for row in rows(folder / "ours.star")] == [85, 85, 0, 0]


GROUPS_STAR = """
data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
_rlnBeamTiltX #9
_rlnBeamTiltY #10
_rlnEvenZernike #11
first 1 300.0 2.7 0.1 4.0 16 2 0.25 -0.5 [0,0,0,0.5,1,0]
second 2 300.0 2.7 0.1 4.0 16 2 0.0 0.75 [0,0,0,0,0,2]

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
_rlnDefocusV #4
_rlnDefocusAngle #5
1@images.mrcs 1 15000 14000 10
2@images.mrcs 2 16000 15000 20
3@images.mrcs 1 17000 16000 30
"""


@pytest.fixture
def with_relions_groups(folder):
    """Writes RELION's STAR file and reads it as scipion-em-relion does: the table of the groups is kept as text, but the
    groups of particles only with ``labels``. Returns the set."""
    import relion.convert

    def make(labels, star=GROUPS_STAR):
        write_stack(folder / "images.mrcs", 3)
        (folder / "groups.star").write_text(star)
        particles = SetOfParticles(filename=str(folder / "groups.sqlite"))
        relion.convert.readSetOfParticles(str(folder / "groups.star"), particles, extraLabels=labels)
        particles.setSamplingRate(PIXEL_SIZE_ANGSTROM)
        particles.write()
        return particles

    return make


def test_aberrations_of_relions_optics_groups_reach_the_engine(with_relions_groups, folder):
    """Without them the engine would apply none, without a word."""
    from cryoforum.convert import writeParticlesStar

    writeParticlesStar(with_relions_groups(["rlnOpticsGroup"]), str(folder / "ours.star"))
    assert [row["rlnOpticsGroup"] for row in rows(folder / "ours.star")] == [1, 2, 1]
    optics = rows(folder / "ours.star", "optics")
    assert [(row["rlnBeamTiltX"], row["rlnBeamTiltY"]) for row in optics] == [(0.25, -0.5), (0.0, 0.75)]
    assert [row["rlnEvenZernike"] for row in optics] == ["[0,0,0,0.5,1,0]", "[0,0,0,0,0,2]"]


def test_particles_that_have_lost_their_groups_keep_what_all_groups_share(with_relions_groups, folder, caplog):
    from cryoforum.convert import writeParticlesStar

    particles = with_relions_groups([], GROUPS_STAR.replace("[0,0,0,0,0,2]", "[0,0,0,0.5,1,0]"))
    writeParticlesStar(particles, str(folder / "ours.star"))
    optics, = rows(folder / "ours.star", "optics")
    assert optics["rlnEvenZernike"] == "[0,0,0,0.5,1,0]" and "rlnBeamTiltX" not in optics
    assert "rlnBeamTiltX differs between the optics groups of RELION and is not applied" in caplog.text


def test_particles_that_are_not_from_relion_have_no_aberrations(folder):
    from cryoforum.convert import writeParticlesStar

    writeParticlesStar(make_particles(folder, n=3), str(folder / "plain.star"))
    assert "rlnBeamTiltX" not in rows(folder / "plain.star", "optics")[0]
