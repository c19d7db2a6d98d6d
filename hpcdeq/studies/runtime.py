"""Seconds that a model takes for a scene in memory (Table III of the paper)."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hpcdeq.cluster.machine import machine
from hpcdeq.console import progress
from hpcdeq.noise import generator
from hpcdeq.studies.method import Method
from hpcdeq.studies.page import write_whole
from hpcdeq.studies.protocols import Protocol

EDGE = 1300  # pixels: the paper's scenes
_WARM = 120  # pixels of the scene that is denoised first, so that nothing is done for the first time
_REPEATS, _LONG_SECONDS = 3, 30.0
_SIGMA = 50 / 255


@dataclass(frozen=True)
class Runtime:
    """How long a scene takes."""

    seconds: float
    """Median, from memory to memory."""
    count: int
    """Runs: one if it takes longer than half a minute, else three."""
    about: str
    """Size of the scene, blocks and machine."""


def measure(methods: Sequence[Method], protocol: Protocol, folder: Path) -> list[tuple[Method, Runtime]]:
    """Measure the trained models among the methods; those that were on a machine like this are not measured again."""
    trained = [method for method in methods if method.model is not None]
    for method in progress(trained, len(trained), "runtime"):
        if _path(method, protocol, folder).is_file():
            continue
        found = _measure(method, protocol)
        write_whole(_path(method, protocol, folder), (json.dumps(asdict(found), indent=1) + "\n").encode())
    return known(methods, protocol, folder)


def known(methods: Sequence[Method], protocol: Protocol, folder: Path) -> list[tuple[Method, Runtime]]:
    """Return what was measured on a machine like this."""
    paths = [(m, _path(m, protocol, folder)) for m in methods if m.model is not None]
    return [(m, Runtime(**json.loads(path.read_text()))) for m, path in paths if path.is_file()]


def _path(method: Method, protocol: Protocol, folder: Path) -> Path:
    key = {"identity": method.identity, "machine": machine(), "edge": EDGE, "protocol": asdict(protocol)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{method.title}-{digest}.json"


def _measure(method: Method, protocol: Protocol) -> Runtime:
    assert method.model is not None
    denoise = method.denoiser(protocol)
    noisy = generator(0).random((method.model.bands, EDGE, EDGE), np.float32)
    denoise(np.ascontiguousarray(noisy[:, :_WARM, :_WARM]), _SIGMA)
    seconds: list[float] = []
    while not seconds or (len(seconds) < _REPEATS and seconds[0] < _LONG_SECONDS):
        begin = time.perf_counter()
        denoise(noisy, _SIGMA)  # its result is in the memory of the CPU: all is done
        seconds.append(time.perf_counter() - begin)
    here, block = machine(), protocol.block or method.model.settings.block
    where = here["gpu"] or f"{here['threads']} of {here['cores']} cores of {here['processor']}"
    overlap = protocol.overlap_of(block)
    about = f"{EDGE} x {EDGE} x {method.model.bands}, blocks of {block} overlapping by {overlap}, {where}"
    return Runtime(statistics.median(seconds), len(seconds), about)
