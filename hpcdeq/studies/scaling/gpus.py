"""What NVML says of the GPU of a process. Without NVML, or on a CPU, it says nothing."""

from __future__ import annotations

import statistics
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
        self._joules = 0.0

    def begin(self) -> None:
        """Begin to count."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._joules, self._use = self._energy(), []

    def look(self) -> None:
        """Note how busy the GPU was in the last moment (NVML's own sample, a sixth of a second to a second)."""
        if self._handle is not None:
            self._use.append(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100)

    def told(self) -> dict[str, float]:
        """Return ``utilisation``, ``peak_bytes`` and ``joules`` since the beginning, as far as they are known."""
        told: dict[str, float] = {}
        if self._device.type == "cuda":
            told["peak_bytes"] = torch.cuda.max_memory_allocated(self._device)
        if self._use:
            told["utilisation"] = statistics.mean(self._use)
        if self._handle is not None and self._joules:
            told["joules"] = self._energy() - self._joules
        return told

    def _energy(self) -> float:
        """Joules since the driver was loaded; 0 if the GPU does not count them."""
        if self._handle is None:
            return 0.0
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except self._nvml.NVMLError:
            return 0.0


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
