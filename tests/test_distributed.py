"What several processes need of each other, as far as one of them can tell."

from types import SimpleNamespace
from unittest.mock import Mock

import lightning_fabric
import lightning_fabric.strategies as strategies
import numpy as np
import pytest
import torch
from torch import distributed as dist

from lungseg.distributed import Team, join
from lungseg.slices import SliceDataset
from lungseg.train import LOOK_EVERY, Loop, Pause, Tally, _report


class _Recorded(Exception):
    "Raised in the place of Fabric, when all has been told."


@pytest.fixture
def backend(monkeypatch):
    "What `join` lets the processes talk over, without starting them."
    told = {}

    def fabric(**_):
        raise _Recorded

    monkeypatch.setattr(lightning_fabric, "Fabric", fabric)
    monkeypatch.setattr(strategies, "DDPStrategy", lambda **options: told.update(options))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)

    def asked(device):
        with pytest.raises(_Recorded):
            join(device, "float32")
        return told["process_group_backend"]

    return asked


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_counted_on_the_processor_travels_whatever_the_network_is_on(backend, device, tmp_path):
    "NCCL carries no tensor of a processor; here gloo stands in for it, and carries those of cards alone."
    carries = backend(device)
    if ":" not in carries:  # one word: of the devices that it can serve
        carries = {"nccl": "cuda:gloo", "gloo": "cpu:gloo,cuda:gloo"}[carries]
    meeting = f"file://{tmp_path / 'meeting'}"
    dist.init_process_group(carries.replace("nccl", "gloo"), meeting, rank=0, world_size=1)
    try:
        team = Team(0, 2)  # the other one is silent
        assert team.any(True) and not team.any(False)
        scores = torch.rand(3, 3, dtype=torch.float64)
        assert torch.equal(team.total(scores), scores)
        team.wait()
    finally:
        dist.destroy_process_group()


def test_graphics_cards_talk_over_nccl(backend):
    assert "cuda:nccl" in backend("cuda").split(",")


def test_cards_are_not_kept_waiting_for_a_question_after_every_step():
    "Whether anybody wants to stop is asked by all at the same steps: those at which figures are read anyway."
    asked = []

    class Two(Team):
        def any(self, here):
            asked.append(state.step)
            return here

    state = SimpleNamespace(step=0, history=[], running={})
    card = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    loop = Mock(Loop, state=state, team=Two(0, 2), fabric=card, pause=Pause(), bar=Mock(), epochs=1)
    for step in range(1, 2 * LOOK_EVERY + 4):
        state.step, tally = step, Tally(state.running)
        tally.add(np.arange(1), torch.tensor(0.5), torch.zeros(1, 2, 4, 4))
        _report(loop, Mock(SliceDataset), tally, 1, last=step == 2 * LOOK_EVERY + 3)
    assert asked == [LOOK_EVERY, 2 * LOOK_EVERY, 2 * LOOK_EVERY + 3]
