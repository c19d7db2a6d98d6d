"""What processes exchange: the bytes are listed; while somebody measures, ``waiting`` and ``communication`` are timed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, distributed

from hpcdeq.timing import is_measured, part

# All that DDP's hook, the trainer and DeepSpeed call.
_CALLS = (
    *("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter"),
    *("reduce_scatter_tensor", "all_to_all_single"),
)


class Exchanged:
    """What was exchanged since the lists were cleared: bytes, the larger of what a process gave and got."""

    def __init__(self) -> None:
        self.all_reduces: list[int] = []
        self.others: list[int] = []
        """Each of them moves half of what an all-reduce does."""

    def clear(self) -> None:
        """Forget it."""
        self.all_reduces.clear()
        self.others.clear()


_listed = Exchanged()


def listen() -> Exchanged:
    """List what is exchanged through `torch.distributed` in this process from now on, and time it as parts of its own.

    Call it before an engine is made: DeepSpeed keeps some of the functions that it finds then, so this is never undone.
    """
    for name in _CALLS:
        original = getattr(distributed, name)
        if not hasattr(original, "listed"):
            setattr(distributed, name, _timed(original, name))
    return _listed


def _timed(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    sizes = _listed.all_reduces if name == "all_reduce" else _listed.others

    @functools.wraps(original)
    def call(*arguments: Any, **options: Any) -> Any:
        sizes.append(max(map(_bytes, (*arguments, *options.values()))))
        if is_measured():  # who is late does not make the exchange slow
            with part("waiting"):
                distributed.barrier()
        with part("communication"):
            work = original(*arguments, **options)
        return work if work is None else _Waiting(work)

    call.listed = True  # type: ignore[attr-defined]
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
