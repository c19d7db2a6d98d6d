"""Solves replayed as CUDA graphs against the same operations launched one by one: steps of training, and scenes.

    python benchmarks/replay.py TRAIN.zarr VAL.zarr [--models deq-fast,...] [--batches 64,128] [--tiles 16,144] [--size 512]

The models that come along, on a GPU; both ways in turn, medians. A step is the trainer's, blocks streamed from the archive; its
parts are measured in a pass of their own, which waits for the GPU at their borders. Scenes are of random numbers, SIZE x SIZE
pixels, with the default overlap and so many tiles a batch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from measure import seconds_in_turn

from hpcdeq.cluster.group import Team
from hpcdeq.config import load_train_config
from hpcdeq.inference import DenoiseSettings, denoise_array
from hpcdeq.models import load_model
from hpcdeq.timing import measuring
from hpcdeq.training import start
from hpcdeq.training.loop import Trainer

_STEPS = 5
_CONFIGS = Path(__file__).parent.parent / "configs"


@contextmanager
def one_by_one() -> Iterator[None]:
    with patch("hpcdeq.solvers.iteration._replay", return_value=None):
        yield


def steps(name: str, batch: int, archives: list[str], device: torch.device, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        config = load_train_config(
            _CONFIGS / f"{name}.yaml",
            [
                f"data.train={archives[0]}",
                f"data.val={archives[1]}",
                f"data.batch={batch}",
                "data.val_blocks=2",
                f"device={device.type}",
                f"run={scratch}/run",
                f"training.start_from={name}",
                "training.pretrain_steps=0",
                "training.log_every=1000",
                "training.validate_every=1000",
                "training.checkpoint_every=1000",
            ],
        )
        trainer = Trainer(config, start.open_run(config), Team(0, 1, device))
        with closing(trainer), closing(trainer.batches()) as batches:
            trainer.enter(1)

            def take() -> None:
                for _ in range(_STEPS):
                    trainer.step(*next(batches))

            def launched() -> None:
                with one_by_one():
                    take()

            times = seconds_in_turn({"launched": launched, "replayed": take}, repeats)
            a, b = (1e3 * statistics.median(times[way]) / _STEPS for way in ("launched", "replayed"))
            print(f"{name:9} step of {batch:4}: {a:7.1f} ms, replayed {b:7.1f} ms, {a / b:.2f} x", end="")
            with measuring(
                torch.cuda.synchronize if device.type == "cuda" else int, one_at_a_time=True
            ) as clock:
                take()
            parts = {part: 1e3 * clock.total(part) / _STEPS for part in list(clock.ended)}
            print("; " + ", ".join(f"{part} {ms:.1f}" for part, ms in parts.items()), flush=True)
            solved = trainer.stepper.solutions
            iterations = {k: f"{v.iterations.float().mean():.1f}" for k, v in solved.items()}
            print(f"{'':9} iterations {iterations}", flush=True)


def scenes(name: str, tiles: int, size: int, device: torch.device, repeats: int) -> None:
    model = load_model(name)
    noisy = np.random.default_rng(0).random((model.bands, size, size), dtype=np.float32)
    settings = DenoiseSettings(device=device.type, batch=tiles)

    def denoise() -> None:
        denoise_array(model, noisy, settings)

    def launched() -> None:
        with one_by_one():
            denoise()

    times = seconds_in_turn({"launched": launched, "replayed": denoise}, repeats)
    a, b = (statistics.median(times[way]) for way in ("launched", "replayed"))
    print(
        f"{name:9} scene, {tiles:4} tiles a batch: {a:6.2f} s, replayed {b:6.2f} s, {a / b:.2f} x", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archives", nargs=2, metavar="ARCHIVE")
    parser.add_argument("--models", default="deq-fast,deq-full,du-fast,du-full")
    parser.add_argument("--batches", default="64,128")
    parser.add_argument("--tiles", default="16,144")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    for name in arguments.models.split(","):
        for batch in map(int, filter(None, arguments.batches.split(","))):
            steps(name, batch, arguments.archives, device, arguments.repeats)
        for tiles in map(int, filter(None, arguments.tiles.split(","))):
            scenes(name, tiles, arguments.size, device, arguments.repeats)


if __name__ == "__main__":
    main()
