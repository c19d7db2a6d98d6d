"""How fast training blocks come out of an archive, against decoding the same chunks with bare Zarr.

    python benchmarks/patch_stream.py ARCHIVE [--repeats 5] [--copies 12]

Each repeat runs all contestants in turn in one process; the ratio is of medians. One pass visits every shard once.

- zarr: every shard read once, in order, with `zarr.Array.__getitem__`; nothing else. The bar is 0.8 of its throughput.
- whole shards: the same with `Scene.stored`, which the stream uses.
- stream: `PatchStream`, (clean, noisy) blocks: shuffled, augmented, noise generated.
- stream, clean: the same without the noise.
- random access: what a plain map-style dataset does: the same blocks, each read by itself in a shuffled order.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from hpcdeq.archive import Scene, open_archive
from hpcdeq.archive import stream as stream_module
from hpcdeq.archive.stream import PatchStream
from hpcdeq.noise import Gaussian


def bare_zarr(scenes: list[Scene]) -> int:
    return sum(
        np.asarray(scene.radiance[(slice(None), *window.slices)]).size
        for scene in scenes
        for window in scene.shards()
    )


def whole_shards(scenes: list[Scene]) -> int:
    return sum(scene.stored(window).size for scene in scenes for window in scene.shards())


def patches(scenes: list[Scene]) -> PatchStream:
    return PatchStream(scenes, block=60, batch=16, seed=0, degradation=Gaussian(sigma=50.0))


def stream(scenes: list[Scene]) -> int:
    return sum(batch.noisy.size for batch in patches(scenes).batches(0))


def stream_clean(scenes: list[Scene]) -> int:
    original = stream_module.add_noise
    stream_module.add_noise = lambda clean, degradation, key, out: (clean, 0.0)  # type: ignore[assignment]
    try:
        return stream(scenes)
    finally:
        stream_module.add_noise = original


def random_access(scenes: list[Scene]) -> int:
    source = patches(scenes)
    blocks = [block for group in source.order(0) for block in group]
    order = np.random.default_rng(0).permutation(len(blocks))
    return sum(source.scenes[blocks[i].scene].read(blocks[i].window).size for i in order)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--copies",
        type=int,
        default=12,
        help="how often each scene is in a pass: small archives end too soon",
    )
    arguments = parser.parse_args()
    scenes = open_archive(arguments.archive).scenes() * arguments.copies
    contestants: dict[str, Callable[[list[Scene]], int]] = {
        "zarr": bare_zarr,
        "whole shards": whole_shards,
        "stream": stream,
        "stream, clean": stream_clean,
        "random access": random_access,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(arguments.repeats + 1):
        for name, run in contestants.items():
            begin = time.perf_counter()
            run(scenes)
            if repeat:  # the first warms caches up
                seconds[name].append(time.perf_counter() - begin)
    base = statistics.median(seconds["zarr"])
    decoded = bare_zarr(scenes)
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"{name:14} {median:7.3f} s a pass (min {min(times):.3f}, max {max(times):.3f})  "
            f"{decoded / median / 1e6:7.1f} M decoded values/s  {base / median:.2f} x zarr"
        )
    source = patches(scenes)
    scenes = [block.scene for group in source.order(0) for block in group]
    distinct = [len(set(scenes[i : i + 16])) for i in range(0, len(scenes) - 15, 16)]
    print(
        f"shuffle: a batch of 16 holds blocks of {np.mean(distinct):.1f} of {len(source.scenes)} scenes on average"
    )


if __name__ == "__main__":
    main()
