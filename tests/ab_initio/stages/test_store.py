"""What finished stages leave, and who reads it."""

import torch

from cryoforum_core.ab_initio.stages.store import StageStore

CPU = torch.device("cpu")


def test_a_part_is_computed_once_by_runs_that_resume_and_anew_by_others(tmp_path):
    computed = []

    def compute():
        computed.append(None)
        return {"values": torch.full((2,), float(len(computed))), "names": ["a", "b"]}

    first, again, anew = (StageStore(tmp_path, is_resuming, CPU).kept("matching all 1", compute)
                          for is_resuming in (True, True, False))
    assert torch.equal(first["values"], again["values"]) and again["names"] == ["a", "b"]
    assert anew["values"].tolist() == [2.0, 2.0] and len(computed) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["matching_all_1.pt"]


def test_the_time_of_the_stages_is_read_by_the_run_that_goes_on(tmp_path):
    resuming, new = (StageStore(tmp_path, is_resuming, CPU) for is_resuming in (True, False))
    assert resuming.seconds() == {}
    new.save_seconds({"search": 12.5})
    assert resuming.seconds() == {"search": 12.5} and new.seconds() == {}
