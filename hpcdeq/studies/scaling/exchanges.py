"""What processes exchange: the bytes are listed; while somebody measures, ``waiting`` and ``communication`` are timed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, distributed

from hpcdeq.timing import is_measured, part

# All that DDP's hook, the trainer and DeepSpeed call. DeepSpeed looks some up when an engine is made: listen from before that on.
_CALLS = (
    *("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter"),
    *("reduce_scatter_tensor", "all_to_all_single"),
)


class Exchanged:
    """What was exchanged since the list was cleared."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        """Of every exchange: those of the larger of what a process gave and got."""


@contextmanager
def listening() -> Iterator[Exchanged]:
    """List what is exchanged through `torch.distributed` in this process, and time it as a part of its own."""
    listed = Exchanged()
    originals = {name: getattr(distributed, name) for name in _CALLS}
    for name, original in originals.items():
        setattr(distributed, name, _timed(original, listed))
    try:
        yield listed
    finally:
        for name, original in originals.items():
            setattr(distributed, name, original)


def _timed(original: Callable[..., Any], listed: Exchanged) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*arguments: Any, **options: Any) -> Any:
        listed.bytes.append(max(map(_bytes, (*arguments, *options.values()))))
        if is_measured():  # who is late does not make the exchange slow
            with part("waiting"):
                distributed.barrier()
        with part("communication"):
            work = original(*arguments, **options)
        return work if work is None else _Waiting(work)

    return call


def _bytes(value: Any) -> int:
    return sum(t.nbytes for t in (value if isinstance(value, list) else [value]) if isinstance(t, Tensor))


class _Waiting:
    """What is exchanged in the background: the wait for its end is communication too."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def wait(self, *arguments: Any) -> Any:
        with part("communication"):
            return self._work.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
