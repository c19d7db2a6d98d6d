"""What NVML says of the GPU of a process. Without NVML, or on a CPU, it says nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class GpuMeter:
    """Reads use and energy of the GPU of a process.

    Parameters
    ----------
    device
        The process's device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._nvml, self._handle = _open(device)
        self._use: list[float] = []
        self._joules: list[float] = []

    @contextmanager
    def repeat(self) -> Iterator[None]:
        """Measure what a process does by itself; what it waits for others is not part of it."""
        before = self._energy()
        yield
        after = self._energy()
        if before is not None and after is not None:
            self._joules.append(after - before)
        if self._handle is not None:
            # NVML's own sample of the last moment, a sixth of a second to a second.
            self._use += self._read(lambda: self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100)

    def told(self, times: int) -> dict[str, Any]:
        """Return ``gpu``, and ``utilisation``, ``peak_bytes`` and ``joules`` of one of ``times`` things done in a repeat."""
        if self._device.type != "cuda":
            return {}
        told: dict[str, Any] = {
            "gpu": str(torch.cuda.get_device_properties(self._device).uuid),
            "peak_bytes": torch.cuda.max_memory_allocated(self._device),
        }
        if self._use:
            told["utilisation"] = statistics.mean(self._use)
        if self._joules:
            told["joules"] = statistics.mean(self._joules) / times
        return told

    def _energy(self) -> float | None:
        """Joules since the driver was loaded."""
        read = self._read(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000)
        return read[0] if read else None

    def _read(self, ask: Any) -> list[float]:
        """A number, or none: not all GPUs tell, and parts of one do not."""
        if self._handle is None:
            return []
        try:
            return [float(ask())]
        except self._nvml.NVMLError:
            return []


def all_gpus(told: list[dict[str, Any]]) -> dict[str, float] | None:
    """Sum up what processes were told, each GPU once."""
    gpus = list({one["gpu"]: one for one in told if one}.values())
    if not gpus:
        return None
    found = {"peak_bytes": float(max(one["peak_bytes"] for one in gpus))}
    if all("utilisation" in one for one in gpus):
        found["utilisation"] = statistics.mean(one["utilisation"] for one in gpus)
    if all("joules" in one for one in gpus):
        found["joules"] = sum(one["joules"] for one in gpus)
    return found


def _open(device: torch.device) -> tuple[Any, Any]:
    if device.type != "cuda":
        return None, None
    try:
        import pynvml
    except ImportError:
        return None, None
    try:
        pynvml.nvmlInit()
        # By its identity: NVML counts all GPUs of the node, torch those that it may see.
        uuid = torch.cuda.get_device_properties(device).uuid
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None, None
