"""Signals that ask a run to stop: SLURM sends them before a time limit, a preemption or a requeue."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


class StopRequest:
    """Whether a signal has asked this process to stop at the next point where nothing is lost."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal."""
        self.signal = signal.Signals(number)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGUSR1, SIGUSR2 and SIGTERM into a request to stop, while the block runs.

    A block inside another one has the same request: what came before it began still counts. Python lets the main thread alone
    listen to signals; from another one nothing is changed.
    """
    outer = getattr(signal.getsignal(STOP_SIGNALS[0]), "__self__", None)
    if isinstance(outer, StopRequest):
        yield outer
        return
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.receive) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
