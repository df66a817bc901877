"""Every problem is found before a protocol runs, and all of them at once."""

import mrcfile
import numpy as np
import pytest
from particle_sets import make_particles


@pytest.fixture(scope="module")
def imported(launch, project):
    """import(**changes) -> a protocol whose outputParticles have everything, except for the changes."""
    from pwem.protocols import ProtImportParticles

    made = {}

    def run(label="good", change=lambda particles: None, **options):
        if label not in made:
            particles = make_particles(project.getTmpPath(label), **{"n": 4, **options})
            change(particles)
            particles.write()
            made[label] = launch(ProtImportParticles, label, importFrom=ProtImportParticles.IMPORT_FROM_SCIPION,
                                 sqliteFile=particles.getFileName(), samplingRate=particles.getSamplingRate(),
                                 voltage=300, sphericalAberration=2.7, amplitudeContrast=0.1)
        return made[label]

    return run


@pytest.fixture(scope="module")
def volume(launch, project):
    """volume(box, pixel size) -> a protocol with that outputVolume."""
    from pwem.protocols import ProtImportVolumes

    made = {}

    def run(box, pixel_size_angstrom):
        key = (box, pixel_size_angstrom)
        if key not in made:
            path = project.getTmpPath(f"map_{box}_{pixel_size_angstrom}.mrc")
            with mrcfile.new(path, overwrite=True) as mrc:
                mrc.set_data(np.random.default_rng(0).normal(size=(box,) * 3).astype(np.float32))
                mrc.voxel_size = pixel_size_angstrom
            made[key] = launch(ProtImportVolumes, f"map {box}", filesPath=path, samplingRate=pixel_size_angstrom)
        return made[key]

    return run


def point(pointer, protocol, name):
    pointer.set(protocol)
    pointer.setExtended(name)


@pytest.fixture
def train(project, imported, volume):
    """train(particles, map, **parameters) -> its problems as one text."""
    from cryoforum.protocols import CryoForumProtTrain

    def problems(particles=None, map_=None, **parameters):
        protocol = project.newProtocol(CryoForumProtTrain, **{"useGpu": False, **parameters})
        point(protocol.inputParticles, particles or imported(), "outputParticles")
        if map_ is not False:
            point(protocol.referenceVolume, map_ or volume(16, 4.0), "outputVolume")
        return "\n".join(protocol.validate())

    return problems


@pytest.fixture
def predict(project, imported, tmp_path):
    """predict(particles, network, map) -> its problems. The network is an object as train makes it."""
    from cryoforum.objects import CryoForumNetwork
    from cryoforum.protocols import CryoForumProtPredict, CryoForumProtTrain

    def problems(particles=None, network=None, map_=None, known=None, **parameters):
        trained = project.newProtocol(CryoForumProtTrain)
        project.saveProtocol(trained)
        (tmp_path / "run/checkpoint").mkdir(parents=True, exist_ok=True)
        values = {"runDirectory": str(tmp_path / "run"), "pixelSize": 4.0, "boxSize": 16, "networkBoxSize": 16,
                  **(network or {})}
        trained._defineOutputs(outputNetwork=CryoForumNetwork(**values))
        protocol = project.newProtocol(CryoForumProtPredict, **{"useGpu": False, **parameters})
        point(protocol.inputParticles, particles or imported(), "outputParticles")
        point(protocol.inputNetwork, trained, "outputNetwork")
        if known is not None:
            point(protocol.calibrationParticles, known, "outputParticles")
        if map_ is not None:
            point(protocol.referenceVolume, map_, "outputVolume")
        return "\n".join(protocol.validate())

    return problems


def test_good_input_has_no_problems(train):
    assert train() == ""


def test_good_input_of_predict_has_no_problems(predict):
    assert predict() == ""


def test_no_ctf(train, imported):
    assert "have no CTF" in train(imported("no ctf", lambda particles: particles.setHasCTF(False)))


@pytest.mark.parametrize("symmetry", ["C0", "cc", "q", "d", "", "i5", "c1x"])
def test_symmetry_typo(train, symmetry):
    assert "Unknown symmetry" in train(symmetry=symmetry)


@pytest.mark.parametrize("symmetry", ["C1", "c12", "D2", "t", "O", "I", "i2"])
def test_symmetries_that_exist(train, symmetry):
    assert train(symmetry=symmetry) == ""


def test_a_map_of_another_box_size_is_warned_about(project, imported, volume):
    """The engine brings any map to the particles' grid, but often a sampling rate is wrong."""
    from cryoforum.protocols import CryoForumProtTrain

    protocol = project.newProtocol(CryoForumProtTrain)
    point(protocol.inputParticles, imported(), "outputParticles")
    for map_, warned in ((volume(16, 4.0), False), (volume(20, 3.2), False), (volume(20, 4.0), True)):
        point(protocol.referenceVolume, map_, "outputVolume")
        assert any("box size in Å" in text for text in protocol.warnings()) is warned


def test_odd_map(train, volume):
    assert "reference must have an even box; it has 15 px" in train(map_=volume(15, 4.0))


def test_map_is_needed(train):
    assert "Give a reference map" in train(map_=False)


def test_orientations_are_needed_to_learn_from(train, imported):
    from cryoforum.protocols.protocol_train import FROM_ORIENTATIONS

    unaligned = imported("unaligned", aligned=False)
    assert "no orientations" in train(unaligned, learnFrom=FROM_ORIENTATIONS)
    assert train(unaligned) == ""


@pytest.mark.parametrize("box", [15, 18, 14])
def test_network_box(train, box):
    assert "network box must be even" in train(networkBox=box)


def test_gpu_that_is_not_there(train, monkeypatch):
    from cryoforum import Plugin

    monkeypatch.setattr(Plugin, "hasGpu", classmethod(lambda cls: False))
    text = train(useGpu=True)
    assert "No NVIDIA GPU was found" in text and '"GPU IDs" to No' in text  # as the form calls it
    assert train(useGpu=False) == ""


def test_one_gpu_is_used(train, monkeypatch):
    from cryoforum import Plugin

    monkeypatch.setattr(Plugin, "hasGpu", classmethod(lambda cls: True))
    assert "One GPU is used" in train(useGpu=True, gpuList="0 1")
    assert train(useGpu=True, gpuList="1") == ""


@pytest.mark.parametrize("queue", [False, True])
@pytest.mark.parametrize("gpus", ["", " ", "0 1", "0,1", "0-2", "x"])
def test_anything_but_one_gpu_is_refused(project, imported, volume, monkeypatch, gpus, queue):
    """Also in a queue, where nobody knows yet whether there is a GPU."""
    from cryoforum import Plugin
    from cryoforum.protocols import CryoForumProtTrain

    monkeypatch.setattr(Plugin, "hasGpu", classmethod(lambda cls: not queue))
    protocol = project.newProtocol(CryoForumProtTrain, useGpu=True)
    point(protocol.inputParticles, imported(), "outputParticles")
    point(protocol.referenceVolume, volume(16, 4.0), "outputVolume")
    protocol._useQueue.set(queue)
    assert protocol.validate() == []
    protocol.gpuList.set(gpus)
    assert any(f'the list of GPU IDs is "{gpus}". Give one number' in text for text in protocol.validate())


def test_a_half_set_is_trained_with_only_where_there_are_half_sets(train, imported):
    without = imported("no half sets", half_set=None)
    assert "4 of 4 particles belong to no half set" in train(without, halfSet=1)
    assert train(without) == ""
    first_only = imported("one half set", half_set=lambda i: 1)
    assert "Half set 2 has no particles" in train(first_only, halfSet=2)
    assert train(first_only, halfSet=1) == ""


def test_too_few_particles_to_learn_from_their_orientations(train, imported):
    from cryoforum.protocols.protocol_train import FROM_ORIENTATIONS

    few = train(imported(), learnFrom=FROM_ORIENTATIONS)
    assert "At least 50 particles are needed to train on their orientations; the set has 4" in few
    enough = imported("60 particles", n=60)
    assert train(enough, learnFrom=FROM_ORIENTATIONS) == ""
    assert "half set 2 has 30" in train(enough, learnFrom=FROM_ORIENTATIONS, halfSet=2)


@pytest.mark.parametrize("dropout, problem", [(1, "must be below 1"), (-0.1, "must be 0 or more")])
def test_dropout(train, dropout, problem):
    assert problem in train(dropout=dropout)


def test_a_stack_with_a_space_in_its_path(train, predict, imported):
    spaced = imported("a space", name="my particles")
    assert " " in spaced.outputParticles.getFirstItem().getFileName()
    for problems in (train(spaced), predict(spaced)):
        assert "cannot hold paths with spaces" in problems and "my particles.mrcs. Rename" in problems


def test_all_problems_come_together(train, imported, volume):
    text = train(imported("no ctf", lambda particles: particles.setHasCTF(False)), volume(15, 4.0), symmetry="x",
                 networkBox=7)
    for problem in ("have no CTF", "Unknown symmetry", "it has 15 px", "network box"):
        assert problem in text


def test_network_of_another_box_size(predict):
    text = predict(network={"boxSize": 32, "networkBoxSize": 32})
    assert "trained on particles of 32 px at 4 Å/px; these have another box size in Å, 16 px at 4 Å/px" in text


def test_a_network_of_finer_pixels_cannot_see_coarser_images(predict):
    text = predict(network={"boxSize": 32, "pixelSize": 2.0, "networkBoxSize": 32})
    assert "sees pixels of 2.000 Å and cannot use coarser images; these particles have 4.000 Å" in text
    assert "another box size" not in text


def test_a_network_of_coarser_pixels_can_see_finer_images(predict):
    assert predict(network={"boxSize": 8, "pixelSize": 8.0, "networkBoxSize": 8}) == ""


def test_reference_of_predict_must_have_the_box_size_of_the_particles(predict, volume):
    text = predict(map_=volume(20, 4.0))
    assert "box size in Å of the particles, 16 px at 4 Å/px; it has 20 px at 4 Å/px" in text
    assert predict(map_=volume(20, 3.2), network={"boxSize": 32, "networkBoxSize": 32}) == ""


def test_network_whose_files_are_gone(predict, tmp_path):
    assert "files of the network are gone" in predict(network={"runDirectory": str(tmp_path / "nowhere")})


def test_symmetry_of_predict(predict):
    assert "Unknown symmetry" in predict(symmetry="k3")


def test_symmetry_of_predict_must_be_that_of_the_network(predict):
    assert "trained with symmetry c1, but d2 was requested" in predict(symmetry="d2")
    assert predict(symmetry="d2", network={"symmetry": "d2"}) == ""
    assert predict(symmetry="c1", network={"symmetry": "d2"}) == ""


def test_particles_with_known_orientations_must_be_many_and_like_the_others(predict, imported):
    text = predict(known=imported("known", aligned=False, pixel_size_angstrom=3.0))
    assert "At least 100 particles with known orientations are needed to calibrate error bounds" in text
    assert ("must have the same box and pixel size as the input particles, 16 px at 4 Å/px; "
            "they have 16 px at 3 Å/px") in text
    assert "has no projection alignment: give the output of a 3D refinement" in text


@pytest.mark.parametrize("coverage, fewest", [(0.9, 100), (0.995, 249), (0.999, 1249)])
def test_more_coverage_needs_more_particles_with_known_orientations(predict, imported, coverage, fewest):
    """As many as the engine asks for."""
    for n, is_enough in ((fewest - 1, False), (fewest, True)):
        text = predict(known=imported(f"{n} known", n=n), coverage=coverage)
        assert (f"At least {fewest} particles with known orientations" not in text) is is_enough


@pytest.mark.parametrize("coverage", [0, 1, 1.5])
def test_a_coverage_is_between_0_and_1(predict, coverage):
    assert "must be between 0.01 and 0.999" in predict(coverage=coverage)


def test_a_network_that_does_not_fit_is_the_first_line_of_the_summary(project, tmp_path):
    import json
    from unittest import mock

    from cryoforum.protocols import CryoForumProtPredict

    protocol = project.newProtocol(CryoForumProtPredict, useGpu=False)
    protocol.outputParticles = object()
    summary = {"n_particles": 5, "images_per_second": 3.0, "median_expected_error_deg": 2.0, "model_applies": False,
               "model_applies_cause": "pixel-size", "model_applies_reason": "pixels are of 5 A",
               "model_applies_doubts": ["Another noise.", "Give --contrast dark."]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with mock.patch.object(protocol, "_runDirectory", lambda: str(tmp_path)):
        lines = protocol._summary()
    assert "DOES NOT FIT" in lines[0] and "pixel-size" in lines[0] and "pixels are of 5 A." in lines[0]
    assert "To check: Another noise." in lines
    assert 'To check: Give "Contrast of the images": dark protein.' in lines
