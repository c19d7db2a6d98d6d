"""What a figure was measured on: processor, cores, GPU and versions."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return the hardware and software of this process, as JSON values."""
    import torch

    from hpcdeq import __version__

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hpcdeq": __version__,
    }


@dataclass(frozen=True)
class Seat:
    """What a process computes with, told so that processes which share it can be found."""

    kernel: str
    """Of the running system: nodes that share it are one machine."""
    node: str
    """Name of the node."""
    cores: frozenset[str]
    """Physical cores that the process may use."""
    threads: int
    """That compute."""
    gpu: str | None
    """The GPU that it uses."""


def seat(gpu: str | None = None) -> Seat:
    """Return that of this process, which uses the GPU of this identity, if any."""
    import torch

    return Seat(
        kernel=_text("/proc/sys/kernel/random/boot_id") or platform.node(),
        node=platform.node(),
        cores=frozenset(_physical_core(cpu) for cpu in os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        gpu=gpu,
    )


def peak_bytes() -> int:
    """Return the largest memory that this process had since `forget_peak`, or ever."""
    lines = _text("/proc/self/status").splitlines()
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def forget_peak() -> None:
    """Let `peak_bytes` begin anew; where the system does not allow it, it goes on."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _physical_core(cpu: int) -> str:
    """A core has the same name for all of its hardware threads."""
    topology = f"/sys/devices/system/cpu/cpu{cpu}/topology"
    package, core = (_text(f"{topology}/{name}") for name in ("physical_package_id", "core_id"))
    return f"{package}.{core}" if package and core else f"cpu {cpu}"


def _processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in _text("/proc/cpuinfo").splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
