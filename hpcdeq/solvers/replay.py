"""Solves on a GPU as CUDA graphs: recorded once, then replayed with other numbers in the same places.

An iteration is a hundred small operations, which a GPU finishes sooner than a processor hands them over one by one; a graph hands
over those of several iterations at once.
"""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_MOST = 8  # recordings of a module: each holds memory of the GPU

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Kind:
    """What a map is beside its tensors: maps of one kind differ in those only."""

    module: nn.Module
    """Whose parameters and buffers are read where they are; recordings are kept as long as it lives."""
    structure: Hashable
    """Everything else that decides what is computed."""


class Replayable(ABC):
    """A map that depends on tensors, and on nothing else but its kind."""

    @abstractmethod
    def kind(self) -> Kind | None:
        """Return what the map is beside its tensors; None if that cannot be told."""

    @abstractmethod
    def replaced(self, change: Change) -> Self:
        """Return the map with every tensor that an application of it reads changed, in a fixed order."""


def tensors_of(replace: Callable[[Change], object]) -> list[Tensor]:
    """Return the tensors that a function changes, `Replayable.replaced` e.g."""
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    replace(note)
    return found


class Recording:
    """A computation in parts: one that begins, and one that goes on from the state that the part before has left.

    Parameters
    ----------
    inputs
        Tensors that it reads, its own; those of each call are copied into them.
    begin
        Returns the state, a list of tensors, after the first part.
    go_on
        Returns the state after one more part, tensors of the same shapes; some may be those of the state before, moved forward.
    """

    def __init__(
        self,
        inputs: list[Tensor],
        begin: Callable[[], list[Tensor]],
        go_on: Callable[[list[Tensor]], list[Tensor]],
    ) -> None:
        self._inputs = inputs
        self.state = [x.clone() for x in begin()]
        go_on(self.state)  # libraries load what they need when it is first used, which cannot be recorded
        self._begin = graph_of(lambda: _copy(begin(), self.state))
        self._go_on = graph_of(lambda: _copy(go_on(self.state), self.state))

    def begin(self, inputs: list[Tensor]) -> None:
        """Do the first part with other numbers."""
        _copy(inputs, self._inputs)
        self._begin()

    def go_on(self) -> None:
        """Do the next part."""
        self._go_on()


def graph_of(run: Callable[[], None]) -> Callable[[], None]:
    """Return what does again what a function, which has run before, does on the current GPU."""
    graph, stream = torch.cuda.CUDAGraph(), _stream_of(torch.cuda.current_device())
    # Other threads may use the GPU meanwhile: they read ahead, or watch over a process group.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        run()
    return graph.replay


@cache
def _stream_of(device: int) -> torch.cuda.Stream:
    """The stream on which all recordings of a GPU are made: libraries keep memory for each stream that they see."""
    return torch.cuda.Stream(device)


class Recordings:
    """What has been recorded. Hold `lock` while one is used, as its tensors are there once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._kept: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Recording | None]] = (
            WeakKeyDictionary()
        )

    def find(
        self, kind: Kind, work: Hashable, inputs: list[Tensor], record: Callable[[], Recording]
    ) -> Recording | None:
        """Return the recording of some work on tensors like these, made when it is done for the first time; None where that fails.

        Parameters
        ----------
        kind, work
            What is done, beside the tensors.
        inputs
            The tensors.
        record
            Makes the recording.
        """
        places = tuple(x.data_ptr() for x in (*kind.module.parameters(), *kind.module.buffers()))
        alike = tuple((x.shape, x.stride(), x.dtype, x.device) for x in inputs)
        key = (kind.structure, work, places, alike, torch.is_inference_mode_enabled())
        kept = self._kept.setdefault(kind.module, OrderedDict())
        if key in kept:
            kept.move_to_end(key)
            return kept[key]
        try:
            kept[key] = record()
        except RuntimeError as error:
            kept[key] = None
            warnings.warn(
                f"solves are not replayed as CUDA graphs, which is faster: recording failed: {error}",
                stacklevel=2,
            )
        if len(kept) > _MOST:
            kept.popitem(last=False)
        return kept[key]


def _copy(of: list[Tensor], to: list[Tensor]) -> None:
    for source, target in zip(of, to, strict=True):
        target.copy_(source)
