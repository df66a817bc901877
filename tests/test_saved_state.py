"""States of unfinished runs: they come back as they were, and no file runs code or ends in a traceback."""

import os

import pytest
import torch

from cryoforum_core.errors import InputError
from cryoforum_core.saved_state import load_state, save_state


class Harm:
    """What a stranger's file would do when it is read."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_tensors_and_values_come_back(tmp_path):
    state = {"pose": torch.arange(4.0), "rounds": [{"radius": 3.5, "change": None}], "step": 7, "settled": True}
    save_state(tmp_path / "state.pt", state)
    again = load_state(tmp_path / "state.pt")
    assert torch.equal(again.pop("pose"), state.pop("pose")) and again == state
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "code"])
def test_other_files_are_refused_with_the_remedy(tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "state.pt"
    torch.save({"harm": Harm()} if damage == "code" else {"pose": torch.zeros(100)}, path)
    content = path.read_bytes()
    if damage != "code":
        path.write_bytes({"empty": b"", "cut": content[:len(content) // 2], "text": b"no state"}[damage])
    with pytest.raises(InputError, match="state.pt.*Remove it") as refused:
        load_state(path)
    assert len(refused.value.problems) == 1
    assert not (tmp_path / "harm").exists()
