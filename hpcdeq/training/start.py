"""How a run begins: its folder, and the model it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcdeq.archive import Scene
from hpcdeq.config import DeepSpeedConfig, TrainConfig, by_dotted_name, dump_yaml, load_train_config
from hpcdeq.errors import ConfigError
from hpcdeq.models import (
    Identities,
    SparseDenoiser,
    learnt_scenes,
    load_model,
    read_card,
    read_dictionary_card,
)
from hpcdeq.training import data, deepspeed_engine

# What does not change what is learnt, beside the length.
_MAY_CHANGE: Any = {
    "run": True,
    "device": True,
    "data": {"workers", "micro_batch"},
    "training": {"engine", "steps", "log_every", "keep", "tensorboard"},
}


def check_batch_norm(config: TrainConfig, processes: int) -> None:
    """Check that a batch is worked on whole where its blocks are normalised together: parts would be other numbers.

    Raises
    ------
    ConfigError
        If it would be divided.
    """
    if not config.model.batch_norm:
        return
    kind, batch, part = config.model.prior.kind, config.data.batch, config.data.micro_batch
    why = f"model.prior.kind={kind} normalises all blocks of a batch together (batch normalisation)"
    if processes > 1:
        raise ConfigError(
            f"{why}, and {processes} processes would divide it; train it in one process, e.g. on one GPU"
        )
    if part is not None and part < batch:
        raise ConfigError(
            f"{why}, and data.micro_batch={part} would divide it; leave data.micro_batch out, or lower data.batch from {batch}"
        )
    if isinstance(config.training.engine, DeepSpeedConfig):
        raise ConfigError(
            f"{why}, whose running averages DeepSpeed's copy of the model would not keep; set training.engine.kind=ddp"
        )


def check_before(config: TrainConfig, processes: int) -> None:
    """See whether a run would find what it names, before it is queued. Nothing is written.

    Raises
    ------
    HpcdeqError
        What the run would fail with.
    """
    check_batch_norm(config, processes)
    check_same_run(config)
    scenes, _ = data.split(config)
    if config.training.start_from is not None:
        first_model(config, scenes, config.run)
    elif isinstance(config.dictionary, Path):
        _new_model(config, data.dictionary_of(config, scenes, config.run))
    if isinstance(config.training.engine, DeepSpeedConfig):
        deepspeed_engine.check_installed()


def open_run(config: TrainConfig) -> Path:
    """Make the run's folder, or check that it is a run of this configuration; what may have changed of it is noted."""
    check_same_run(config)
    config.run.mkdir(parents=True, exist_ok=True)
    resolved = config.run / "config.yaml"
    aside = resolved.with_suffix(".tmp")
    aside.write_text(dump_yaml(config))
    aside.replace(resolved)
    return config.run


def check_same_run(config: TrainConfig) -> None:
    """Check that the run's folder holds no run of another configuration.

    Raises
    ------
    ConfigError
        If it does.
    """
    resolved = config.run / "config.yaml"
    # One in which nothing was begun, as a path was wrong, may be given other settings.
    if not resolved.is_file() or {path.name for path in config.run.iterdir()} <= {"config.yaml", "jobs"}:
        return
    old, new = (
        dict(by_dotted_name(c.model_dump(mode="json", exclude=_MAY_CHANGE)))
        for c in (load_train_config(resolved, []), config)
    )
    changed = [
        f"{key} was {old.get(key)}, is {new.get(key)}"
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{config.run} is a run with another configuration ({'; '.join(changed)}); "
            "choose another folder with run=FOLDER, or remove it to start over"
        )


def learnt_from(config: TrainConfig, scenes: list[Scene]) -> Identities:
    """Return the scenes that a run's model learns from, with those behind the model or the dictionary that it begins with."""
    begun = config.training.start_from
    if begun is not None:
        before = learnt_scenes(read_card(begun)["provenance"])
    elif isinstance(config.dictionary, Path):
        before = learnt_scenes(read_dictionary_card(config.dictionary))
    else:
        before = {}
    found = {name: set(identities) for name, identities in before.items()}
    for scene in scenes:
        found.setdefault(scene.name, set()).update(scene.identities)
    return {name: sorted(identities) for name, identities in sorted(found.items())}


def first_model(config: TrainConfig, scenes: list[Scene], run: Path) -> SparseDenoiser:
    """Make the model to begin with: fresh, or with the dictionary and weights of another.

    Raises
    ------
    ConfigError
        If the settings of the model do not fit the scenes, or the other model does not.
    """
    torch.manual_seed(config.seed)
    start = config.training.start_from
    if start is None:
        return _new_model(config, data.dictionary_of(config, scenes, run))
    given = load_model(start)
    if given.bands != scenes[0].shape[0]:
        raise ConfigError(
            f"training.start_from: {start} has {given.bands} bands, the scenes have {scenes[0].shape[0]}"
        )
    model = _new_model(config, given.atoms)
    try:
        model.prior.load_state_dict(given.prior.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"training.start_from: the prior of {start} has another architecture than model.prior: {error}"
        ) from error
    if given.settings.map != "prior" and config.training.start_scalars:
        for name, value in given.scalars.items():
            if name in model.scalars:
                model.scalars[name].data.copy_(value)
        model.after_step()
    return model


def _new_model(config: TrainConfig, dictionary: Tensor) -> SparseDenoiser:
    try:
        return SparseDenoiser(config.model, dictionary)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
