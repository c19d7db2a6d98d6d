"""Which points a scaling study has: plain values, made before anything runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from hpcdeq.config import TrainConfig, by_dotted_name, load_train_config
from hpcdeq.errors import ConfigError
from hpcdeq.models.files import read_card
from hpcdeq.studies.scaling.results import Mode, Work

MODES: tuple[Mode, ...] = ("strong", "weak")
ENGINES: dict[str, list[str]] = {
    "ddp": ["training.engine.kind=ddp"],
    **{f"zero{n}": ["training.engine.kind=deepspeed", f"training.engine.stage={n}"] for n in range(4)},
}
"""Engines of training by the names they have in a study, as overrides."""
_TITLES = {"ddp": "DDP", **{f"zero{n}": f"ZeRO-{n}" for n in range(4)}}
_SIZE = re.compile(r"([1-9][0-9]*)x([1-9][0-9]*)")
_NEVER = 10**9  # steps
_STILL = 1e-12  # learning rate: the solver needs as many iterations in the last step as in the first


@dataclass(frozen=True, order=True)
class Size:
    """Nodes, and processes on each."""

    nodes: int
    tasks: int

    @property
    def world(self) -> int:
        """Processes."""
        return self.nodes * self.tasks

    def __str__(self) -> str:
        return f"{self.nodes}x{self.tasks}"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How carefully each point is measured."""

    warmup: int = 1
    """Repeats before those that count."""
    repeats: int = 5
    steps: int = 5
    """Training steps of a repeat."""

    def __post_init__(self) -> None:
        for name, least in (("warmup", 0), ("repeats", 1), ("steps", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is measured by one job."""

    work: Work
    series: str
    """What else was chosen, in words."""
    nodes: int
    tasks: int
    """Processes on each node."""
    load: int
    """Blocks in a step, or scenes in a pass."""
    what: Mapping[str, Any]
    """The work, as plain values: of training ``config``; of bulk denoising ``archive``, ``scenes``, ``model``, ``settings`` and
    ``storage``."""
    effort: Mapping[str, int]
    """How carefully it is measured."""
    where: Mapping[str, Any] = field(default_factory=dict)
    """What the job asks for beside its size."""

    @property
    def name(self) -> str:
        """Of its folder: the same for the same work at the same size and place, however carefully it is measured."""
        told = {key: value for key, value in asdict(self).items() if key != "effort"}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
        words = re.sub(r"[^a-z0-9]+", "-", self.series.lower()).strip("-")[:60]
        return f"{self.work}-{words}-{self.nodes}x{self.tasks}-{digest}"

    @property
    def device(self) -> str:
        """``auto``, ``cpu`` or ``cuda``."""
        return str(self.what["config" if self.work == "train" else "settings"]["device"])

    @property
    def settings(self) -> dict[str, Any]:
        """All that was asked for beside size and load, by dotted names."""
        told = dict(by_dotted_name({"what": self.what, "where": self.where}))
        return {name.partition(".")[2]: v for name, v in told.items() if name not in _LOADS_AND_PLACES}

    def __str__(self) -> str:
        return f"{self.work} {self.series}, {self.nodes} x {self.tasks}, load {self.load}"


_LOADS_AND_PLACES = ("what.config.data.batch", "what.config.run", "what.scenes")


def sizes_of(text: str) -> list[Size]:
    """Read sizes such as ``1x1,1x4,2x4``: nodes and the processes on each.

    Raises
    ------
    ConfigError
        If one is not of this form, or given twice.
    """
    sizes = []
    for word in text.split(","):
        match = _SIZE.fullmatch(word.strip())
        if match is None:
            raise ConfigError(
                f"--sizes: {word!r} is not NODESxPROCESSES, such as 2x4: two nodes with four processes each"
            )
        sizes.append(Size(int(match[1]), int(match[2])))
    if len(set(sizes)) < len(sizes):
        raise ConfigError(f"--sizes {text}: a size is given twice")
    return sorted(sizes, key=lambda size: (size.world, size))


def modes_of(text: str) -> tuple[Mode, ...]:
    """Read ``strong,weak``, or one of them.

    Raises
    ------
    ConfigError
        If there is another word.
    """
    words = {word.strip() for word in text.split(",")}
    if not words <= set(MODES):
        raise ConfigError(f"--modes must be strong, weak or both (strong,weak), got {text!r}")
    return tuple(mode for mode in MODES if mode in words)


def train_points(
    configs: Sequence[Path],
    overrides: Sequence[str],
    engines: Sequence[str],
    vary: Sequence[str],
    sizes: Sequence[Size],
    modes: Sequence[Mode],
    effort: Effort,
) -> list[Point]:
    """Points of training.

    Parameters
    ----------
    configs
        Files of settings, each the beginning of series; none is the defaults.
    overrides
        Settings of all of them, as ``key=value``.
    engines
        Of `ENGINES`.
    vary
        Settings with several values, ``key=a,b``: every combination is a series.
    sizes, modes, effort
        Of every series. ``data.batch`` is the batch of the smallest size, and of all in strong scaling.

    Raises
    ------
    ConfigError
        If a setting is wrong, or a batch has fewer blocks than there are processes.
    """
    unknown = [engine for engine in engines if engine not in ENGINES]
    if unknown:
        raise ConfigError(f"--engines: no engine {', '.join(unknown)}; there are: {', '.join(ENGINES)}")
    alternatives = [_alternatives(text) for text in vary]
    points = []
    for file, engine, chosen in product(configs or [None], engines, product(*alternatives)):  # type: ignore[list-item]
        words = [file.stem if file else "defaults", _TITLES[engine], *chosen]
        config = load_train_config(file, [*overrides, *ENGINES[engine], *chosen, "run=unused"])
        begun = config.training.start_from
        # Of the same path another model may have become meanwhile.
        what = {"weights": None if begun is None else read_card(begun)["weights_sha256"]}
        for size, scale in _loads(sizes, modes):
            batch = config.data.batch * scale
            if batch < size.world:
                raise ConfigError(
                    f"data.batch={batch} has fewer blocks than the {size.world} processes of {size}: some would only wait; use a "
                    "larger batch, or leave that size out"
                )
            points.append(
                Point(
                    work="train",
                    series=", ".join(words),
                    nodes=size.nodes,
                    tasks=size.tasks,
                    load=batch,
                    what=what | {"config": _for_steps(config, batch)},
                    effort=asdict(effort),
                )
            )
    return points


def denoise_points(
    what: Mapping[str, Any],
    title: str,
    scenes: Sequence[str],
    sizes: Sequence[Size],
    modes: Sequence[Mode],
    effort: Effort,
    per_process: int,
) -> list[Point]:
    """Points of bulk denoising.

    Parameters
    ----------
    what
        Archive, model, settings and storage.
    title
        What is said of them.
    scenes
        Names of those that may be used: all of them in strong scaling.
    sizes, modes, effort
        As those of `train_points`.
    per_process
        Scenes that a process of weak scaling denoises.

    Raises
    ------
    ConfigError
        If there are too few scenes.
    """
    if not scenes:
        raise ConfigError(f"there are no scenes to denoise in {what['archive']}; ingest some first")
    points = []
    for mode in modes:
        load = len(scenes) if mode == "strong" else per_process * sizes[0].world
        for size, scale in _loads(sizes, (mode,)):
            if load * scale > len(scenes):
                raise ConfigError(
                    f"weak scaling of {per_process} scenes a process to {size.world} processes needs {load * scale} scenes, got "
                    f"{len(scenes)}: leave large sizes out, lower --scenes-per-process, or measure --modes strong only"
                )
            points.append(
                Point(
                    work="denoise",
                    series=title,
                    nodes=size.nodes,
                    tasks=size.tasks,
                    load=load * scale,
                    what={**what, "scenes": list(scenes[: load * scale])},
                    effort=asdict(effort) | {"steps": 1},
                )
            )
    return list({point.name: point for point in points}.values())


def _loads(sizes: Sequence[Size], modes: Sequence[Mode]) -> list[tuple[Size, int]]:
    """Sizes with their loads, as multiples of that of the smallest."""
    smallest = sizes[0].world
    uneven = [str(size) for size in sizes if size.world % smallest]
    if "weak" in modes and uneven:
        raise ConfigError(
            f"weak scaling needs sizes that are multiples of the smallest one, {sizes[0]}: {', '.join(uneven)} is not; "
            "use other --sizes, or --modes strong"
        )
    pairs = []
    for size in sizes:
        pairs += [(size, 1)] if "strong" in modes else []
        pairs += [(size, size.world // smallest)] if "weak" in modes else []
    return list(dict.fromkeys(pairs))


def _alternatives(text: str) -> list[str]:
    key, _, values = text.partition("=")
    if not key or not values:
        raise ConfigError(f"--vary {text}: write KEY=VALUE,VALUE, e.g. model.block=40,60")
    return [f"{key}={value}" for value in re.split(r",(?![^\[{]*[\]}])", values)]  # not at those of a list


def _for_steps(config: TrainConfig, batch: int) -> dict[str, Any]:
    """Return a configuration that only takes steps, as plain values: nothing between them, and all of them alike."""
    plain = config.model_dump(mode="json")
    plain["data"] |= {"batch": batch, "val_blocks": 1}
    training = plain["training"]
    training |= dict.fromkeys(
        ("pretrain_steps", "steps", "log_every", "validate_every", "checkpoint_every"), _NEVER
    )
    training |= {"pretrain_lr": _STILL, "lr": _STILL, "largest_residual": _NEVER, "tensorboard": False}
    return plain
