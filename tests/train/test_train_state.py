import errno

import pytest
import torch

from polygrain.provenance.errors import UserError
from polygrain.train.state import Identity, State, load_state, save_state

IDENTITY = Identity(config="a", code="b", environment="c", data="d")


def state(identity: Identity = IDENTITY) -> State:
    return State(identity, 7, {"w": torch.arange(3.0)}, {"state": {}, "param_groups": []}, ['{"step": 0}\n'])


def test_a_state_comes_back_as_it_was(tmp_path):
    save_state(tmp_path / "state.pt", state())
    found = load_state(tmp_path / "state.pt", IDENTITY, refuse=False)
    assert found is not None
    assert (found.step, found.metrics, found.identity) == (7, ['{"step": 0}\n'], IDENTITY)
    assert torch.equal(found.method["w"], torch.arange(3.0))


@pytest.mark.parametrize("part", ["config", "code", "environment", "data"])
def test_another_input_discards_the_state_and_says_which(tmp_path, capsys, part):
    path = tmp_path / "state.pt"
    save_state(path, state())
    other = Identity(**{**vars(IDENTITY), part: "changed"})
    with pytest.raises(UserError, match=f"cannot resume, this half-done run differs in {part};"):
        load_state(path, other, refuse=True)
    assert path.exists()
    assert load_state(path, other, refuse=False) is None
    assert capsys.readouterr().out.strip().endswith(f"differs in {part}")
    assert not path.exists()


def test_a_truncated_state_is_discarded(tmp_path, capsys):
    path = tmp_path / "state.pt"
    save_state(path, state())
    path.write_bytes(path.read_bytes()[:200])
    assert load_state(path, IDENTITY, refuse=False) is None
    assert "damaged" in capsys.readouterr().out


def test_resume_without_a_state_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing to resume from"):
        load_state(tmp_path / "state.pt", IDENTITY, refuse=True)


def test_a_full_disk_leaves_the_previous_state(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_state(path, state())
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(UserError, match="the disk is full"):
        save_state(path, state())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.pt"]
