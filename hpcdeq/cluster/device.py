"""Which device to compute on."""

from __future__ import annotations

import torch

from hpcdeq.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Return the torch device of a name; ``auto`` is CUDA where there is one.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is not one of auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device: cuda was asked for, but torch sees no CUDA device; `hpcdeq doctor` says why"
        )
    return device
