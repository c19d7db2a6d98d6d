"""Measure steps of training: those of the trainer itself, on blocks streamed from the archive."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpcdeq.cluster.group import Team
from hpcdeq.cluster.machine import peak_bytes
from hpcdeq.cluster.signals import StopRequest
from hpcdeq.config import TrainConfig
from hpcdeq.errors import ConfigError, PreemptedError
from hpcdeq.models import save_dictionary
from hpcdeq.studies.scaling.exchanges import listen
from hpcdeq.studies.scaling.gpus import GpuMeter
from hpcdeq.studies.scaling.micro import all_reduces, mpi_all_reduces
from hpcdeq.studies.scaling.points import Point
from hpcdeq.studies.scaling.results import SHARES, Spread
from hpcdeq.timing import measuring
from hpcdeq.training import data
from hpcdeq.training.loop import Trainer
from hpcdeq.training.start import check_batch_norm


def measure_training(
    point: Point, team: Team, study: Path, scratch: Path, stop: StopRequest, trace: Path | None
) -> dict[str, Any]:
    """Measure a point, in all of its processes.

    Parameters
    ----------
    point
        The point.
    team
        The processes.
    study
        Folder of the study, which keeps dictionaries.
    scratch
        Folder for what the run writes.
    stop
        Looked at after every repeat.
    trace
        File for a trace of one more step of the first process, for chrome://tracing or Perfetto; None: no trace.

    Returns
    -------
    dict
        Fields of `hpcdeq.studies.scaling.results.Result`.

    Raises
    ------
    ConfigError
        If steps cannot be taken, as the loss is not finite.
    PreemptedError
        If it was asked to stop.
    """
    config = _with_dictionary(
        TrainConfig.model_validate({**point.what["config"], "run": scratch}), team, study
    )
    check_batch_norm(config, team.world_size)
    effort, exchanged = point.effort, listen()
    trainer = Trainer(config, scratch, team)
    with closing(trainer), closing(trainer.batches()) as batches:
        trainer.enter(0 if config.model.map == "prior" else 1)

        def take(steps: int) -> None:
            for _ in range(steps):
                trainer.step(*next(batches))
                team.any(bool(stop))  # as the trainer does
                if trainer.at.skipped:
                    raise ConfigError(
                        f"{point}: the loss or the gradient is not finite, so no step was taken and none can be measured; begin "
                        "from a trained model with training.start_from=MODEL"
                    )

        meter = GpuMeter(team.device)
        seconds = _repeats(take, effort, meter, team, stop)
        gpu, peak = meter.told(effort["steps"]), peak_bytes()
        shares = _shares(take, effort["steps"], team)
        exchanged.clear()
        take(1)
        all_reduced, half_exchanged = tuple(exchanged.all_reduces), tuple(exchanged.others)
        iterations = {
            name: Spread.of(n for told in team.gather(solved.iterations.tolist()) for n in told)
            for name, solved in trainer.stepper.solutions.items()
        }
        if trace is not None:
            with _traced(trace if team.leads else None):
                take(1)
    through_mpi, no_mpi = mpi_all_reduces(team)
    return {
        "bands": trainer.model.bands,
        "seconds": seconds,
        "amount": float(config.data.batch),
        "largest_part": float(-(-config.data.batch // team.world_size)),
        "shares": _mean(team.gather(shares)),
        "exchanged": all_reduced,
        "half_exchanged": half_exchanged,
        "exchanges": (*all_reduces(team), *through_mpi),
        "no_mpi": no_mpi,
        "iterations": iterations,
        "peak_bytes": peak,
        "gpu": gpu,
    }


def _repeats(
    take: Callable[[int], None], effort: Mapping[str, int], meter: GpuMeter, team: Team, stop: StopRequest
) -> tuple[float, ...]:
    """Seconds of a step in each repeat that counts, in the slowest process."""
    seconds = []
    for repeat in range(effort["warmup"] + effort["repeats"]):
        if repeat < effort["warmup"]:
            _timed(partial(take, effort["steps"]), team)
        else:
            with meter.repeat():
                mine = _timed(partial(take, effort["steps"]), team)
            seconds.append(max(team.gather(mine)) / effort["steps"])
        if team.any(bool(stop)):
            raise PreemptedError("stopped before the point was measured; it is measured again")
    return tuple(seconds)


def _shares(take: Callable[[int], None], steps: int, team: Team) -> dict[str, float]:
    """Where the time of a step goes, in one more repeat: waiting for a device at the borders of parts takes time itself."""
    with measuring(partial(_settle, team.device), one_at_a_time=True) as clock:
        whole = _timed(partial(take, steps), team)
    shares = {name: clock.total(name) / steps for name in SHARES["train"][:-1]}
    return shares | {"other": max(0.0, whole / steps - sum(shares.values()))}


def _with_dictionary(config: TrainConfig, team: Team, study: Path) -> TrainConfig:
    """Give a configuration the dictionary that it would learn: all points of the study share it."""
    if isinstance(config.dictionary, Path) or config.training.start_from is not None:
        return config
    settings = config.dictionary
    key = json.dumps(
        [str(config.data.train), str(config.data.split), settings.__dict__], sort_keys=True, default=str
    )
    path = study / "dictionaries" / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.safetensors"

    def learn() -> None:
        if not path.is_file():
            scenes, _ = data.split(config)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_dictionary(data.learn_from_scenes(scenes, settings), path, {})

    team.first(learn)
    return config.model_copy(update={"dictionary": path})


def _timed(work: partial[None], team: Team) -> float:
    """Seconds of some work that all processes begin together."""
    team.any(False)
    begin = time.perf_counter()
    work()
    _settle(team.device)
    return time.perf_counter() - begin


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _traced(path: Path | None) -> Iterator[None]:
    """Write a trace of what happens inside."""
    if path is None:
        yield
        return
    with torch.profiler.profile() as profile:
        yield
    path.parent.mkdir(parents=True, exist_ok=True)
    profile.export_chrome_trace(str(path))


def _mean(told: list[Mapping[str, float]]) -> dict[str, float]:
    """Mean over processes."""
    return {name: statistics.mean(one[name] for one in told) for name in told[0]}
