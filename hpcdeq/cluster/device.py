"""Which device to compute on."""

from __future__ import annotations

import torch

from hpcdeq.errors import ConfigError


def check_device_name(name: str) -> None:
    """See that a name is that of a device, whether or not this machine has it.

    Raises
    ------
    ConfigError
        If it is not.
    """
    try:
        torch.device("cpu" if name == "auto" else name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is not one of auto, cpu, cuda, cuda:N") from error


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the torch device of a name for a process of a node; ``auto`` is CUDA where there is one.

    Processes of a node take its GPUs in turn, and use the one they took for everything. What is float32 is computed so there.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    check_device_name(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device: cuda was asked for, but torch sees no CUDA device; `hpcdeq doctor` says why"
        )
    if name == "cuda":
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if device.type == "cuda":
        # torch lets convolutions round to TF32, 10 bits: residuals would stop near 1e-3, and a GPU's pixels differ from a CPU's.
        torch.backends.cudnn.allow_tf32 = False
    return device
