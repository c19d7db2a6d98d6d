"""The loop that all solvers share: who has converged, who leaves, what is replayed on a GPU."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from hpcdeq.solvers.fixed_point import (
    FixedPointMap,
    ReplayableMap,
    Solution,
    per_block,
    relative_size,
)
from hpcdeq.solvers.replay import Change, Recording, Recordings, tensors_of

_STRIDE = 5  # iterations of a replay between two questions whether any block is left

_RECORDINGS = Recordings()


class Mixing(Protocol):
    """What a solver remembers of one solve, and how it makes the next iterate of it."""

    def step(self, state: Tensor, image: Tensor, change: Tensor) -> Tensor:
        """Return the next iterate after ``state``, whose image is ``image``; ``change`` is what is observed of their difference."""
        ...

    def take(self, blocks: Tensor) -> None:
        """Keep what is remembered of some of the blocks only."""
        ...


class TensorMixing(ABC):
    """A mixing that remembers tensors ``(block, ...)`` and nothing else: solves with it can be replayed."""

    settings: Hashable
    """All that decides its steps beside what it remembers."""

    full_after: int
    """Steps after which each one forgets as many tensors as it adds."""

    @abstractmethod
    def step(self, state: Tensor, image: Tensor, change: Tensor) -> Tensor:
        """Return the next iterate, as `Mixing.step` does."""

    @abstractmethod
    def replace(self, change: Change) -> None:
        """Change every tensor that is remembered, in a fixed order: those of older iterates first."""

    def take(self, blocks: Tensor) -> None:
        """Keep what is remembered of some of the blocks only."""
        self.replace(lambda x: x[blocks])


@dataclass
class _Progress:
    """How far the solve of each block has come."""

    state: Tensor
    best: Tensor
    residual: Tensor
    count: Tensor
    active: Tensor

    @staticmethod
    def from_start(state: Tensor) -> _Progress:
        blocks, device = len(state), state.device
        return _Progress(
            state=state,
            best=state,
            residual=torch.full((blocks,), torch.inf, device=device),
            count=torch.zeros(blocks, dtype=torch.int64, device=device),
            active=torch.ones(blocks, dtype=torch.bool, device=device),
        )

    def tensors(self) -> list[Tensor]:
        return [self.state, self.best, self.residual, self.count, self.active]

    def solution(self, tolerance: float) -> Solution:
        return Solution(
            state=self.best,
            residual=self.residual,
            iterations=self.count,
            converged=self.residual <= tolerance,
        )

    def look(self, f: FixedPointMap, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the map; return the image, what is observed to have changed, and the blocks ``(block,)`` whose best this is."""
        image = f(self.state)
        observed = f.observe(image)
        change = observed - f.observe(self.state)
        return image, change, self._judge(change, observed, tolerance)

    @torch.no_grad()
    def _judge(self, change: Tensor, observed: Tensor, tolerance: float) -> Tensor:
        size = relative_size(change, observed).to(self.residual.dtype)
        finite = self.active & torch.isfinite(size)
        better = finite & (size < self.residual) if tolerance > 0 else finite
        self.residual = torch.where(better, size, self.residual)
        self.count = self.count + self.active
        self.active = finite & (size > tolerance)
        return better


_PROGRESS = len(fields(_Progress))


def iterate(f: FixedPointMap, state: Tensor, iterations: int, tolerance: float, mixing: Mixing) -> Solution:
    """Iterate a map until every block has converged.

    A block that has converged, or has become non-finite, leaves the batch (on a GPU, where the shape of the batch must
    stay, it is frozen): so its result does not depend on its batch mates, and time follows difficulty.

    Parameters
    ----------
    f
        The map.
    state
        (block, ...) first iterate.
    iterations, tolerance
        Most applications of the map, and the relative residual at which a block is finished; 0 runs all iterations.
    mixing
        The solver's memory of this solve, empty.
    """
    if state.is_cuda and not torch.is_grad_enabled():
        solution = _replay(f, state, iterations, tolerance, mixing)
        if solution is not None:
            return solution
    numbers = torch.arange(len(state), device=state.device)
    at = _Progress.from_start(state)
    left: list[tuple[Tensor, ...]] = []
    for k in range(1, iterations + 1):
        image, change, better = at.look(f, tolerance)
        # On the CPU asking about blocks costs nothing, on a GPU it would wait for the answer.
        cpu = image.device.type == "cpu"
        improved = cpu and bool(better.all())
        at.best = image if improved else torch.where(per_block(better, image), image, at.best)
        if k == iterations or ((cpu or tolerance > 0) and not bool(at.active.any())):
            break
        at.state = mixing.step(at.state, image, change)
        if cpu and not bool(at.active.all()):
            stay, gone = at.active.nonzero()[:, 0], (~at.active).nonzero()[:, 0]
            left.append((numbers[gone], at.best[gone], at.residual[gone], at.count[gone]))
            numbers, at = numbers[stay], _Progress(*(x[stay] for x in at.tensors()))
            f = f.take(stay)
            mixing.take(stay)
    if left:
        left.append((numbers, at.best, at.residual, at.count))
        numbers, at.best, at.residual, at.count = (torch.cat(part) for part in zip(*left, strict=True))
        order = numbers.argsort()
        at.best, at.residual, at.count = at.best[order], at.residual[order], at.count[order]
    return at.solution(tolerance)


def _replay(
    f: FixedPointMap, state: Tensor, iterations: int, tolerance: float, mixing: Mixing
) -> Solution | None:
    """Do the same by a recording; None if there is none."""
    if not (isinstance(f, ReplayableMap) and isinstance(mixing, TensorMixing)):
        return None
    kind = f.kind()
    if kind is None:
        return None
    inputs = [*tensors_of(f.replaced), state]
    first = max(_STRIDE, mixing.full_after)
    work = (iterations, tolerance, type(mixing), mixing.settings)
    with _RECORDINGS.lock, torch.cuda.device_of(state):
        recording = _RECORDINGS.find(
            kind, work, inputs, lambda: _record(f, state, iterations, tolerance, mixing, first)
        )
        if recording is None:
            return None
        at = _Progress(*recording.state[:_PROGRESS])
        recording.begin(inputs)
        for _ in range(first, iterations, _STRIDE):
            if tolerance > 0 and not bool(at.active.any()):
                break
            recording.go_on()
        at = _Progress(*(x.clone() for x in at.tensors()))
    return at.solution(tolerance)


def _record(
    f: ReplayableMap, state: Tensor, iterations: int, tolerance: float, mixing: TensorMixing, first: int
) -> Recording:
    """Record the first iterations of a solve, after which the memory of it is full, and the next ones."""
    inputs: list[Tensor] = []

    def own(x: Tensor) -> Tensor:
        inputs.append(x.detach().clone())
        return inputs[-1]

    f, start = f.replaced(own), own(state)
    empty = memory = copy.deepcopy(mixing)

    def go(at: _Progress, count: int) -> list[Tensor]:
        for _ in range(count):
            image, change, better = at.look(f, tolerance)
            at.active &= at.count < iterations
            at.best = torch.where(per_block(better, image), image, at.best)
            at.state = memory.step(at.state, image, change)
        return [*at.tensors(), *tensors_of(memory.replace)]

    def begin() -> list[Tensor]:
        nonlocal memory
        memory = copy.deepcopy(empty)
        return go(_Progress.from_start(start), first)

    def go_on(before: list[Tensor]) -> list[Tensor]:
        remembered = iter(before[_PROGRESS:])
        memory.replace(lambda _: next(remembered))
        return go(_Progress(*before[:_PROGRESS]), _STRIDE)

    return Recording(inputs, begin, go_on)
