"""The form of the train protocol against the engine: nobody who leaves it as it is gets another training."""

import json

import pytest
from engine_data import engine_defaults
from particle_sets import make_particles

INPUTS = {"particles", "reference", "from_checkpoint"}
# every option of the training and the network that somebody may want to change is in the form
NOT_IN_THE_FORM = {"job", "out", "device", "resume", "pixel_size_angstrom"}


@pytest.fixture(scope="module")
def defaults(project):
    return engine_defaults("TrainConfig")


@pytest.fixture(scope="module")
def make(project):
    """make(**parameters) -> a protocol that has its particles."""
    from cryoforum.protocols import CryoForumProtTrain

    particles = make_particles(project.getTmpPath("train_form"), n=4)

    def new(**parameters):
        protocol = project.newProtocol(CryoForumProtTrain, useGpu=False, **parameters)
        protocol.inputParticles.set(particles)
        return protocol

    return new


@pytest.mark.parametrize("learn_from", [0, 1])
def test_the_form_has_the_engines_defaults(make, defaults, learn_from):
    given = make(learnFrom=learn_from)._engineOptions()
    assert set(given) == set(defaults) - NOT_IN_THE_FORM
    # the form always has a limit of time: the engine's own is steps alone
    own = INPUTS | {"max_minutes"}
    assert {name: value for name, value in given.items() if name not in own} == {
        name: value for name, value in defaults.items() if name in given and name not in own}


def test_what_the_form_says_reaches_the_engine(make, defaults):
    """Choices are numbers in the form: each stands for the value that its text says."""
    given = make(learnFrom=1, encoder=2, head=2, loss=3, pooling=4, activation=3, halfSet=2, networkBox=16, width=8,
                 realFraction=0.25, shiftRms=3.5, learningRate=1e-4, binghamWeight=0.0, shiftWeight=2.0,
                 augment=False, dropout=0.5, filterChannels=2, batchSize=32, patience=3, maxSteps=7, maxMinutes=2.5,
                 validationFraction=0.2, precision=1, symmetry=" D2 ")._engineOptions()
    expected = {"encoder": "cryoposenet", "head": "s2s2", "loss": "chordal", "pooling": "flatten", "activation": "silu",
                "half_set": "2", "network_box_size_px": 16, "width": 8, "particle_fraction": 0.25,
                "shift_rms_angstrom": 3.5, "learning_rate": 1e-4, "bingham_weight": 0.0, "shift_weight": 2.0,
                "augment": False, "dropout": 0.5, "filter_channels": 2, "batch_size": 32, "patience_evaluations": 3,
                "max_steps": 7, "max_minutes": 2.5, "validation_fraction": 0.2, "precision": "float32",
                "symmetry": "d2"}
    assert {name: given[name] for name in expected} == expected
    assert all(given[name] != defaults[name] for name in expected)


def test_an_encoder_without_pooling_shows_none_and_takes_none(make):
    """Chosen before for another encoder, it would be refused."""
    for encoder, shown, pooling in ((make().encoder.get(), False, "auto"), (0, True, "flatten")):
        protocol = make(encoder=encoder, pooling=4)
        assert bool(protocol.evalParamCondition("pooling")) is shown
        assert protocol._engineOptions()["pooling"] == pooling


@pytest.mark.parametrize("parameters, shown", [({"learnFrom": 0}, False), ({"learnFrom": 1}, True),
                                               ({"learnFrom": 1, "realFraction": 0}, False)])
def test_particles_are_held_out_only_where_a_network_learns_from_them(make, parameters, shown):
    """One that learns from projections is tested on projections."""
    assert bool(make(**parameters).evalParamCondition("validationFraction")) is shown


@pytest.mark.parametrize("source, said", [("simulated projections", "on simulated projections that it was not trained"),
                                          ("held-out particles", "on held-out particles that it was not trained on")])
def test_the_summary_says_which_images_the_errors_are_of(make, start, monkeypatch, tmp_path, source, said):
    protocol = make()
    protocol.outputNetwork = start(validationMedianError=7.0).outputNetwork
    (tmp_path / "summary.json").write_text(json.dumps({
        "validation_median_error_deg": 7.0, "validation_mean_error_deg": 9.0, "validation_source": source,
        "seconds": 60}))
    monkeypatch.setattr(protocol, "_runDirectory", lambda: str(tmp_path))
    assert said in protocol._summary()[0] and said in protocol._methods()[0]


NETWORK_PARAMETERS = {"encoder": "encoder", "networkBox": "network_box_size_px", "head": "head", "width": "width",
                      "filterChannels": "filter_channels", "pooling": "pooling", "activation": "activation",
                      "dropout": "dropout"}


@pytest.fixture
def start(project, tmp_path):
    """start(**values) -> a protocol with a trained network of d2 as output."""
    from cryoforum.objects import CryoForumNetwork
    from cryoforum.protocols import CryoForumProtTrain

    def new(**values):
        trained = project.newProtocol(CryoForumProtTrain)
        project.saveProtocol(trained)
        (tmp_path / "run/checkpoint").mkdir(parents=True, exist_ok=True)
        trained._defineOutputs(outputNetwork=CryoForumNetwork(**{
            "runDirectory": str(tmp_path / "run"), "pixelSize": 4.0, "boxSize": 16, "networkBoxSize": 16,
            "symmetry": "d2", "encoder": "cryoforum", **values}))
        return trained

    return new


def start_from(protocol, trained):
    protocol.startNetwork.set(trained)
    protocol.startNetwork.setExtended("outputNetwork")
    return protocol


def test_a_network_to_start_from_describes_itself(make, start):
    """What would describe a new one is neither shown nor given to the engine, which would not heed it."""
    protocol = make(networkBox=16, encoder=2, dropout=0.5, learnFrom=1, symmetry="d2")
    assert all(protocol.evalParamCondition(name) for name in NETWORK_PARAMETERS)
    assert set(NETWORK_PARAMETERS.values()) <= set(protocol._engineOptions())
    start_from(protocol, start())
    assert not any(protocol.evalParamCondition(name) for name in NETWORK_PARAMETERS)
    assert not set(NETWORK_PARAMETERS.values()) & set(protocol._engineOptions())
    protocol.networkBox.set(7)
    assert not any("box" in problem for problem in protocol._validate())


@pytest.mark.parametrize("own, given, fits", [("d2", "D2", True), ("d2", "c1", False), ("c1", "d2", False),
                                              ("i", "i2", True), ("i1", "i2", False)])
def test_a_network_to_start_from_keeps_its_symmetry(make, start, own, given, fits):
    problems = start_from(make(learnFrom=1, symmetry=given), start(symmetry=own))._validate()
    said = f"was trained with symmetry {own}, which it keeps, but {given.lower()} was requested. Give {own}"
    assert any(said in problem for problem in problems) is not fits
    assert any("symmetry" in problem for problem in problems) is not fits


@pytest.fixture
def shown(project, monkeypatch):
    """shown(protocol or object) -> the views that Analyze results makes of it."""
    import pyworkflow as pw
    from pyworkflow.viewer import DESKTOP_TKINTER

    def views(target):
        Viewer = pw.Config.getDomain().findViewers(target, DESKTOP_TKINTER)[0]
        assert Viewer.__name__ == "CryoForumTrainViewer"
        return Viewer(project=project, protocol=None)._visualize(target)

    return views


def test_the_viewer_opens_the_report_of_a_protocol_and_of_its_network(shown, start, monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr("webbrowser.open_new_tab", opened.append)
    trained = start()
    monkeypatch.setattr(trained, "_runDirectory", lambda: str(tmp_path / "run"))
    for name in ("report.html", "summary.json"):
        (tmp_path / "run" / name).write_text("{}")
    for target in (trained, trained.outputNetwork):
        view, = shown(target)
        view.show()
    assert opened == [f"file://{tmp_path}/run/report.html"] * 2


def test_the_viewer_of_a_running_training_shows_how_the_error_falls(shown, make, monkeypatch, tmp_path):
    protocol = make()
    monkeypatch.setattr(protocol, "_runDirectory", lambda: str(tmp_path))
    assert "first test" in shown(protocol)[0].getMessage()
    (tmp_path / "metrics.csv").write_text("step,loss,validation_median_error_deg,validation_mean_error_deg\n"
                                          "10,2.5,,\n20,2.1,80.5,85\n30,1.9,,\n40,1.2,30.25,41\n50,1.")
    axes, = shown(protocol)[0].getFigure().axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[80.5, 30.25], [85, 41]]
    assert axes.lines[0].get_xdata().tolist() == [20, 40]
    assert "30.2" in axes.get_legend().get_texts()[0].get_text()
