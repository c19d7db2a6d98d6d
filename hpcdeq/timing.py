"""Where time goes: parts of the work carry names, and are timed only while somebody measures."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """When every part ended, and its seconds without those of other parts inside it; by its name, in order."""

    settle: Callable[[], None]
    """Waits until a device has done what it was given, so that a part ends when its work does."""
    one_at_a_time: bool
    """Whether parts in other threads are inside the one that is open, as a backward pass on a GPU has a thread of its own."""
    ended: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._shared: list[float] = []
        self._of_thread = threading.local()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        inner = self._inner()
        self.settle()
        begin = time.perf_counter()
        inner.append(0.0)
        try:
            yield
        finally:
            self.settle()
            end = time.perf_counter()
            whole = end - begin
            self.ended[name].append((end, whole - inner.pop()))
            if inner:
                inner[-1] += whole

    def total(self, name: str) -> float:
        """Seconds of all parts of a name."""
        return sum(self.seconds(name))

    def seconds(self, name: str) -> list[float]:
        """Seconds of each part of a name."""
        return [seconds for _, seconds in self.ended.get(name, ())]

    def _inner(self) -> list[float]:
        """Seconds of the parts inside each part that is open."""
        if self.one_at_a_time:
            return self._shared
        if not hasattr(self._of_thread, "inner"):
            self._of_thread.inner = []
        inner: list[float] = self._of_thread.inner
        return inner


_clock: Clock | None = None


@contextmanager
def measuring(settle: Callable[[], None] = lambda: None, *, one_at_a_time: bool = False) -> Iterator[Clock]:
    """Time the parts that begin meanwhile, in all threads of this process; parameters are those of `Clock`."""
    global _clock
    assert _clock is None, "one measures at a time"
    _clock = Clock(settle, one_at_a_time)
    try:
        yield _clock
    finally:
        _clock = None


def is_measured() -> bool:
    """Whether somebody measures."""
    return _clock is not None


@contextmanager
def part(name: str) -> Iterator[None]:
    """Give a name to what happens inside; it costs a microsecond while nobody measures."""
    clock = _clock
    if clock is None:
        yield
        return
    with clock.part(name):
        yield


def note(name: str) -> None:
    """Give a name to this moment: a part without length."""
    with part(name):
        pass
