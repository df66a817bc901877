"""What the forms pass on to the engine, and its sentences, which speak of its command line, in the words of the forms."""

import ast
import re
from pathlib import Path

import pytest
from engine_data import engine_options
from particle_sets import make_particles, random_transforms, write_posterior

ENGINE = Path(__file__).resolve().parents[2] / "cryoforum_core"
CONFIGS = {"CryoForumProtTrain": "TrainConfig", "CryoForumProtPredict": "PredictConfig",
           "CryoForumProtAbInitio": "AbInitioConfig", "CryoForumProtSubset": "SelectConfig"}
# parameters that set no option by themselves: what they do is in the protocol
NO_OPTIONS = {"CryoForumProtTrain": {"learnFrom"}, "CryoForumProtPredict": set(), "CryoForumProtAbInitio": set(),
              "CryoForumProtSubset": {"criterion", "symmetry", "rejectJunk", "rejectNoParticle", "rejectOverlap",
                                      "rejectOffCentre", "rejectOtherObject", "rejectAmbiguous"}}
SCIPIONS_OWN = {"runName", "runMode", "hostName", "gpuList", "useGpu", "numberOfThreads", "numberOfMpi"}
# modules whose sentences the summary of a protocol shows
SAID_IN = {"ab_initio/convergence.py": "CryoForumProtAbInitio", "inference/applicability.py": "CryoForumProtPredict",
           "inference/mismatch.py": "CryoForumProtPredict"}


@pytest.fixture(scope="module")
def network(project):
    """A protocol with a trained network."""
    from cryoforum.objects import CryoForumNetwork
    from cryoforum.protocols import CryoForumProtTrain

    trained = project.newProtocol(CryoForumProtTrain)
    project.saveProtocol(trained)
    trained._defineOutputs(outputNetwork=CryoForumNetwork(runDirectory="network/run", pixelSize=4.0, boxSize=16,
                                                          networkBoxSize=16))
    return trained


@pytest.fixture(scope="module")
def particles(project):
    """8 particles that have a particle probability and all other measures."""
    from cryoforum.convert import copyWithPredictions, readAttributes, readPredictions
    from pwem.objects import SetOfParticles

    folder = project.getTmpPath("form_options")
    plain = make_particles(folder, n=8)
    write_posterior(f"{folder}/posterior.npz", readAttributes(plain, [])[0], random_transforms(8), 4.0,
                    reason=["none"] * 7 + ["not-a-particle"])
    judged = SetOfParticles(filename=f"{folder}/judged.sqlite")
    copyWithPredictions(plain, judged, readPredictions(f"{folder}/posterior.npz", 4.0))
    judged.write()
    return judged


@pytest.fixture(scope="module")
def make(project, network, particles):
    """make(name, **parameters) -> a protocol with its particles and its network; "map" and "particles" stand for a map
    and for particles, "network" for a network to start from."""
    import pyworkflow as pw
    from pwem.objects import Volume

    objects = {"map": Volume(location="map.mrc"), "particles": particles, "network": network}

    def new(name, **parameters):
        protocol = project.newProtocol(pw.Config.getDomain().getProtocols()[name])
        protocol.inputParticles.set(particles)
        if name == "CryoForumProtPredict":
            parameters["inputNetwork"] = "network"
        for parameter, value in parameters.items():
            getattr(protocol, parameter).set(objects.get(value, value) if isinstance(value, str) else value)
            if value == "network":
                getattr(protocol, parameter).setExtended("outputNetwork")
        return protocol

    return new


@pytest.fixture(scope="module", params=CONFIGS)
def protocol(request, make):
    return make(request.param)


# ------------------------- the table of a protocol -------------------------
def test_every_entry_names_a_parameter_and_an_option(protocol):
    known = engine_options(CONFIGS[type(protocol).__name__])
    for option in protocol.OPTIONS:
        assert protocol.getParam(option.param) is not None, f"the form has no parameter {option.param}"
        assert option.name in known, f"the engine has no option {option.name}"
        assert not option.getter or callable(getattr(protocol, option.getter)), option
        if option.choices:
            assert len(option.choices) == len(protocol.getParam(option.param).choices), option
            assert set(option.choices) <= known[option.name], option
        assert protocol.getParam(option.param).hasCondition() or not option.evenHidden, option


def test_every_parameter_does_something(protocol):
    form = {name for name, _ in protocol.getDefinition().iterParams()} - SCIPIONS_OWN
    used = {option.param for option in protocol.OPTIONS}
    assert form - used == NO_OPTIONS[type(protocol).__name__]


# ------------------------- options -------------------------
# Continue runs a job again from the start where its options differ: a change here costs users of an earlier version their
# finished runs.
INPUT = "./extra/input_particles.star"
IMAGES = {"particles": INPUT, "contrast": "auto", "ctf_state": "auto", "seed": 0}
OF_A_NEW_NETWORK = {"encoder": "polar", "head": "qcqp", "network_box_size_px": None, "filter_channels": 5, "width": None,
                    "pooling": "auto", "activation": "auto", "dropout": 0.0}
TRAIN = {**IMAGES, "reference": None, "from_checkpoint": None, "symmetry": "c1", "max_minutes": 60.0, "max_steps": 20000,
         "loss": "pairwise-to-own", "bingham_weight": 1.0, "shift_weight": 1.0, "particle_fraction": None,
         "shift_rms_angstrom": None, "augment": True, "half_set": "all", "validation_fraction": 0.1, "batch_size": 128,
         "learning_rate": None, "precision": "auto", "patience_evaluations": 10}
PREDICT = {**IMAGES, "model": "network/run", "reference": None, "refinement": "adaptive", "resolution_angstrom": None,
           "max_shift_angstrom": None, "symmetry": None, "coverage": 0.9, "calibration_particles": None, "batch_size": 256}
AB_INITIO = {**IMAGES, "symmetry": "c1", "particle_diameter_angstrom": None, "resolution_angstrom": None,
             "train_minutes": None, "network_box_size_px": None, "coverage": 0.9, "batch_size": 128, "learning_rate": None}
HYBRID = {**AB_INITIO, "method": "hybrid", "seeds": 2, "search_steps": 400, "max_shift_angstrom": None,
          "hand_reference": None}
END_TO_END = {**AB_INITIO, "method": "end-to-end", "epochs": 30, "encoder": "cryoposenet", "head": "s2s2",
              "symmetric_loss": False, "n_heads": 1, "frequency_marching": False, "random_pose_weight": 0.0,
              "per_image_after_epoch": None}
SELECT = {"run": "./extra/measured", "measure": "particle-probability"}
PROTECTED = {**SELECT, "protect_views": True}


def cases(name, expected, *changes):
    """As it is, and (parameters, options that differ from the expected ones)."""
    return [(name, {}, expected), *((name, parameters, {**expected, **options}) for parameters, options in changes)]


FORMS = [
    *cases(
        "CryoForumProtTrain", {**TRAIN, **OF_A_NEW_NETWORK},
        ({"referenceVolume": "map"}, {"reference": "./extra/reference.mrc"}),
        ({"referenceVolume": "map", "learnFrom": 1}, {}),
        ({"encoder": 1, "pooling": 2, "head": 3, "activation": 1},
         {"encoder": "cryoforum", "pooling": "average", "head": "quaternion", "activation": "prelu"}),
        ({"encoder": 3, "pooling": 2}, {}),
        ({"learnFrom": 0, "realFraction": 0.25}, {}), ({"learnFrom": 1, "realFraction": 0.25}, {"particle_fraction": 0.25}),
        ({"learnFrom": 1, "realFraction": 0.0}, {"particle_fraction": 0.0}), ({"learnFrom": 1, "realFraction": -0.5}, {}),
        ({"learnFrom": 0, "validationFraction": 0.2}, {"validation_fraction": 0.2}),
        ({"networkBox": 32, "width": 8, "shiftRms": 3.0, "learningRate": 1e-4},
         {"network_box_size_px": 32, "width": 8, "shift_rms_angstrom": 3.0, "learning_rate": 1e-4}),
        ({"halfSet": 2, "precision": 2, "loss": 1, "patience": 3, "augment": False, "symmetry": " D2 "},
         {"half_set": "2", "precision": "bfloat16", "loss": "own", "patience_evaluations": 3, "augment": False,
          "symmetry": "d2"}),
        ({"contrast": 2, "ctfState": 2, "seed": 7}, {"contrast": "dark", "ctf_state": "phase-flipped", "seed": 7})),
    ("CryoForumProtTrain", {"startNetwork": "network", "encoder": 1, "pooling": 2, "dropout": 0.5, "networkBox": 32},
     {**TRAIN, "from_checkpoint": "network/run"}),
    *cases(
        "CryoForumProtPredict", PREDICT,
        ({"refinement": 0}, {"refinement": "none"}),
        ({"refinement": 0, "referenceVolume": "map", "resolution": 8.0, "maxShift": 12.0},
         {"refinement": "none", "resolution_angstrom": 8.0, "max_shift_angstrom": 12.0}),
        ({"refinement": 1, "referenceVolume": "map"}, {"refinement": "local", "reference": "./extra/reference.mrc"}),
        ({"calibrationParticles": "particles", "coverage": 0.95},
         {"calibration_particles": "./extra/known_particles.star", "coverage": 0.95}),
        ({"symmetry": " C4 ", "batchSize": 32}, {"symmetry": "c4", "batch_size": 32})),
    *cases(
        "CryoForumProtAbInitio", HYBRID,
        ({"handReference": "map"}, {"hand_reference": "./extra/reference.mrc"}),
        ({"epochs": 7, "encoder": 2, "nHeads": 3}, {}),
        ({"seeds": 3, "searchSteps": 50, "maxShift": 9.0, "particleDiameter": 90.0, "trainMinutes": 2.0},
         {"seeds": 3, "search_steps": 50, "max_shift_angstrom": 9.0, "particle_diameter_angstrom": 90.0,
          "train_minutes": 2.0})),
    ("CryoForumProtAbInitio", {"method": 1, "handReference": "map", "seeds": 3, "maxShift": 9.0}, END_TO_END),
    ("CryoForumProtAbInitio", {"method": 1, "epochs": 7, "encoder": 3, "head": 1, "perImageAfterEpoch": 5, "nHeads": 2},
     {**END_TO_END, "epochs": 7, "encoder": "polar", "head": "qcqp", "per_image_after_epoch": 5, "n_heads": 2}),
    *cases(
        "CryoForumProtSubset", PROTECTED,
        ({"protectViews": False}, {"protect_views": False}), ({"measure": 3}, {"measure": "expected-error"}),
        ({"criterion": 1}, {"auto": True}), ({"criterion": 3, "keepFraction": 0.5}, {"keep_fraction": 0.5}),
        ({"criterion": 4, "keepCount": 5}, {"keep_count": 5}), ({"criterion": 4}, {"keep_count": 8})),
    ("CryoForumProtSubset", {"criterion": 2, "rejectOverlap": False, "measure": 3},
     {**SELECT, "reasons": ["not-a-particle", "off-centre", "another-object"]}),
    ("CryoForumProtSubset", {"criterion": 5, "measure": 2, "threshold": -4.0},
     {**SELECT, "measure": "match-score", "threshold": -4.0}),
    ("CryoForumProtSubset", {"criterion": 6, "threshold": 1.0},
     {**SELECT, "measure": "expected-error", "max_error_deg": 10.0}),
    ("CryoForumProtSubset", {"criterion": 7, "threshold": 1.0, "rejectJunk": False},
     {**SELECT, "measure": "error-bound", "threshold": 20.0, "reasons": []}),
]


@pytest.mark.parametrize("name, parameters, expected", FORMS)
def test_the_options_of_a_form_stay_what_they_are(make, name, parameters, expected):
    """A new option that is left to the engine discards no run."""
    given = make(name, **parameters)._engineOptions()
    assert {option: value for option, value in given.items() if option in expected or value is not None} == expected


# ------------------------- words -------------------------
@pytest.mark.parametrize("name, engines, forms", [
    ("CryoForumProtAbInitio", "Run again with another --seed, more --seeds or more --search-steps.",
     'Run again with another "Random seed", more "Random starts" or more "Search steps".'),
    ("CryoForumProtPredict", "protein is dark in these images, not bright: give --contrast dark",
     'protein is dark in these images, not bright: give "Contrast of the images": dark protein'),
    ("CryoForumProtPredict", "give --ctf-state phase-flipped (or multiplied, if so)",
     'give "CTF correction of the images": phases flipped (or multiplied, if so)'),
    ("CryoForumProtPredict", "Use --refinement adaptive, or train the network longer",
     'Use "Refinement": adaptive, or train the network longer'),
    ("CryoForumProtPredict", "Give the map's own --symmetry, or turn the map",
     "Give the map's own \"Symmetry\", or turn the map"),
    ("CryoForumProtPredict", "correct it (rlnImagePixelSize, or --pixel-size-angstrom 3.14), or the map's",
     "correct it (the sampling rate at their import: 3.14 Å), or the map's"),
    ("CryoForumProtPredict", "Give a map with --reference, or use --unknown more.",
     'Give a map with "Reference map", or use --unknown more.'),
    ("CryoForumProtPredict", "none was found. Use --device cpu, or check the driver",
     'none was found. Use "GPU IDs": No, or check the driver'),
    ("CryoForumProtTrain", "and --symmetry is d2. Give --symmetry c1, or train a new network (without --from-checkpoint).",
     'and "Symmetry" is d2. Give "Symmetry" c1, or train a new network (without "Start from network").'),
    ("CryoForumProtTrain", "--half-set 1 needs the column", '"Particles to train with": half 1 needs the column'),
    ("CryoForumProtTrain", "--max-minutes must be above 0", '"Time (minutes)" must be above 0'),
    ("CryoForumProtSubset", "No option at all - nothing changes.", "No option at all - nothing changes.")])
def test_options_become_labels(make, name, engines, forms):
    assert make(name)._inFormWords(engines) == forms


@pytest.mark.parametrize("criterion, label", [(5, "Threshold"), (7, "Maximum error bound (degrees)")])
def test_of_two_parameters_the_one_shown_is_named(make, criterion, label):
    assert make("CryoForumProtSubset", criterion=criterion)._inFormWords("Lower --threshold.") == f'Lower "{label}".'


@pytest.mark.parametrize("path, name", SAID_IN.items())
def test_no_option_is_left_in_what_a_summary_shows(make, path, name):
    """Errors of options that no form has (InputError) are not shown by a protocol."""
    tree = ast.parse((ENGINE / path).read_text())
    raised = {id(node) for error in ast.walk(tree) if isinstance(error, ast.Raise) for node in ast.walk(error)}
    texts = [node.value for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in raised]
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree)
                  if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)}
    said = {option for text in texts if text not in docstrings for option in re.findall(r"--([a-z][a-z-]*)", text)}
    said -= {"pixel-size-angstrom"}
    assert said and said <= {option.name.replace("_", "-") for option in make(name).OPTIONS}
