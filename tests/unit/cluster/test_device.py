from __future__ import annotations

import pytest
import torch

from hpcdeq.cluster.device import choose_device
from hpcdeq.errors import ConfigError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine that seems to have two; those that were made the current one."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    return chosen


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_processes_of_a_node_take_its_gpus_in_turn(two_gpus: list[torch.device], name: str) -> None:
    devices = [torch.device("cuda", i) for i in (0, 1, 0)]
    assert [choose_device(name, local_rank) for local_rank in range(3)] == devices
    assert two_gpus == devices


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1"])
def test_what_is_float32_is_computed_so_on_a_gpu(two_gpus: list[torch.device], name: str) -> None:
    choose_device(name)
    assert not torch.backends.cudnn.allow_tf32


def test_the_cpu_is_taken_where_asked_or_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match="'gpu' is not one of auto, cpu, cuda"):
        choose_device("gpu")
