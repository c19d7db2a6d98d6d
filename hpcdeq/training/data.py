"""What is learnt from and validated on: splits, streams, the dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hpcdeq.archive import Scene, open_archive
from hpcdeq.archive.splits import read_split
from hpcdeq.archive.stream import Batch, OnBadChunk, PatchStream
from hpcdeq.cluster.group import Team
from hpcdeq.config import TrainConfig
from hpcdeq.console import say
from hpcdeq.errors import ConfigError, HpcdeqError, SceneError
from hpcdeq.models import load_dictionary, save_dictionary
from hpcdeq.noise import generator, stable_hash
from hpcdeq.sparse import KSvdSettings
from hpcdeq.training.shared_ksvd import learn_shared

_HELD_OUT = 10  # every tenth scene
_PIXELS = 20_000  # spectra a dictionary is learnt from
_SHARDS = 4  # of a scene, that spectra are taken from
_DICTIONARY, _VALIDATION = 11, 12  # what a key is for
_ALONE = Team(0, 1, torch.device("cpu"))


def split(config: TrainConfig) -> tuple[list[Scene], list[Scene]]:
    """Open the scenes to learn from and those to validate on.

    Raises
    ------
    ConfigError
        If an archive is empty, is not that of the split, or the band counts differ.
    """
    archive = open_archive(config.data.train)
    parts = None if config.data.split is None else read_split(config.data.split)
    train = archive.scenes() if parts is None else parts.take(archive, "train")
    if not train:
        raise ConfigError(f"data.train: the archive {config.data.train} holds no scene; ingest some first")
    if parts is not None and parts.parts["val"]:
        val = parts.take(archive if config.data.val is None else open_archive(config.data.val), "val")
    elif config.data.val is not None:
        val = open_archive(config.data.val).scenes()
        if not val:
            raise ConfigError(f"data.val: the archive {config.data.val} holds no scene")
    elif len(train) > 1:
        val = train[::_HELD_OUT]
        train = [scene for scene in train if scene not in val]
        say(
            f"data.val is not set: {', '.join(scene.name for scene in val)} held out of training to validate on"
        )
    else:
        val = train
        say(
            f"only one scene, {train[0].name}: it is validated on too, so validation says nothing about new scenes"
        )
    counts = {scene.shape[0] for scene in [*train, *val]}
    if len(counts) > 1:
        which = {n: next(s.name for s in [*train, *val] if s.shape[0] == n) for n in sorted(counts)}
        raise ConfigError(
            f"all scenes of a run must have one band count; found {which}: split them into archives by sensor"
        )
    return train, val


def training_stream(config: TrainConfig, scenes: list[Scene], team: Team) -> PatchStream:
    """Blocks to learn from: this process's part of every batch."""
    return PatchStream(
        scenes,
        block=config.model.block,
        batch=config.data.batch,
        seed=config.seed,
        degradation=config.noise,
        augment=config.data.augment,
        shuffle_shards=config.data.shuffle_shards,
        workers=config.data.workers,
        rank=team.rank,
        world_size=team.world_size,
        on_bad_chunk=config.data.on_bad_chunk,
    )


class TorchBatches(IterableDataset[tuple[Tensor, Tensor, int]]):
    """Endless (clean, noisy, blocks planned) from a stream, beginning after ``consumed`` batches of the run."""

    def __init__(self, stream: PatchStream, consumed: int) -> None:
        self.stream = stream
        self.consumed = consumed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        epoch, start = divmod(self.consumed, self.stream.batches_per_epoch)
        while True:
            for batch in self.stream.batches(epoch, start):
                yield *as_tensors(batch), batch.planned
            epoch, start = epoch + 1, 0


def torch_loader(stream: PatchStream, consumed: int, pin: bool) -> DataLoader[tuple[Tensor, Tensor, int]]:
    """Wrap a stream as a torch loader. It has its own threads, so no worker processes are forked (Zarr forbids it)."""
    return DataLoader(TorchBatches(stream, consumed), batch_size=None, num_workers=0, pin_memory=pin)


def as_tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    """(clean, noisy) of a batch, without a copy."""
    return torch.from_numpy(batch.clean), torch.from_numpy(batch.noisy)


def validation_batches(config: TrainConfig, scenes: list[Scene]) -> list[tuple[Tensor, Tensor]]:
    """Return the same few blocks of the validation scenes, with the same noise, every time and in every process.

    Raises
    ------
    ConfigError
        If none can be read.
    """
    stream = PatchStream(
        scenes,
        block=config.model.block,
        batch=min(config.data.batch, config.data.val_blocks),
        seed=_VALIDATION,
        degradation=config.noise,
        augment=False,
        workers=config.data.workers,
        on_bad_chunk=config.data.on_bad_chunk,
    )
    left = config.data.val_blocks
    chosen = []
    batches = stream.batches(epoch=0)
    for batch in batches:
        clean, noisy = as_tensors(batch)
        if len(clean):
            chosen.append((clean[:left], noisy[:left]))
        left -= clean.shape[0]
        if left <= 0:
            break
    if not chosen:
        raise ConfigError(
            f"no block of the validation scenes can be read: {', '.join(sorted(stream.left_out))}"
        )
    for line in sorted(stream.left_out):
        say(f"left out of validation: {line}")
    return chosen


def dictionary_of(config: TrainConfig, scenes: list[Scene], run: Path) -> Tensor:
    """Read or learn the run's dictionary ``(band, atom)``; a learnt one is kept in the run's folder."""
    if isinstance(config.dictionary, Path):
        dictionary = load_dictionary(config.dictionary)
    else:
        kept = run / "dictionary.safetensors"
        if not kept.is_file():
            say(f"learning a dictionary of {config.dictionary.atoms} atoms from {len(scenes)} scenes")
            try:
                learnt = learn_from_scenes(scenes, config.dictionary, on_bad_chunk=config.data.on_bad_chunk)
            except HpcdeqError:
                raise
            except ValueError as error:
                raise ConfigError(f"dictionary: {error}") from error
            save_dictionary(learnt, kept, {"scenes": {s.name: s.identities for s in scenes}})
        dictionary = load_dictionary(kept)
    if dictionary.shape[0] != scenes[0].shape[0]:
        raise ConfigError(
            f"dictionary: its atoms have {dictionary.shape[0]} bands, the scenes {scenes[0].shape[0]}"
        )
    return dictionary


def learn_from_scenes(
    scenes: list[Scene], settings: KSvdSettings, team: Team = _ALONE, on_bad_chunk: OnBadChunk = "stop"
) -> Tensor:
    """Learn a dictionary by K-SVD from spectra sampled evenly over the scenes, without their masked pixels.

    Raises
    ------
    SceneError
        If a chunk cannot be read and ``on_bad_chunk`` is ``stop``; with ``skip`` it is named, and others take its place.
    ConfigError
        If the scenes have too few spectra or bands for these settings.
    """
    share = -(-_PIXELS // len(scenes))
    none = np.empty((0, scenes[0].shape[0]), np.float32)  # where there are more processes than scenes
    own = [_sample(scene, share, settings.seed, on_bad_chunk) for scene in scenes[team.part(len(scenes))]]
    signals = torch.from_numpy(np.concatenate([none, *own]))
    try:
        return learn_shared(signals, settings, team).dictionary
    except ValueError as error:
        raise ConfigError(f"no dictionary can be learnt from these scenes: {error}") from error


def _sample(
    scene: Scene, count: int, seed: int, on_bad_chunk: OnBadChunk
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Draw ``count`` spectra (pixel, band) from at most four shards of a scene."""
    rng = generator(seed, stable_hash(scene.name), _DICTIONARY)
    shards = list(scene.shards())
    found: dict[int, NDArray[np.float32]] = {}
    for i in rng.permutation(len(shards)):
        try:
            found[i] = scene.read(shards[i])[:, scene.valid_mask(shards[i])].T
        except SceneError as error:
            if on_bad_chunk == "stop":
                raise
            say(f"left out of what the dictionary is learnt from: {error}")
        if len(found) == _SHARDS:
            break
    share = -(-count // max(len(found), 1))
    spectra = [found[i][rng.permutation(len(found[i]))[:share]] for i in sorted(found)]
    return np.concatenate([np.empty((0, scene.shape[0]), np.float32), *spectra])
