"""Bulk denoising: what a worker makes of the bare model, two workers of one, memory by size of scene, planning, the ledger.

    python benchmarks/bulk.py ARCHIVE --model MODEL [--parts throughput,workers,planning,ledger,memory]

throughput: a worker from Zarr to Zarr against the same model on the same tiles in memory, in turn in one process; the tiles of
each scene are those of its whole grid, once. workers: processes of one thread that share a plan, from a common start to the
last one's end. planning: 10,000 scenes. ledger: a unit's record written, and read with its files' checksums. memory: peak of a
process that denoises scenes of 1300 x 1300, and one of EDGE x EDGE, 31 bands, by a small model (its pixels do not matter).
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import memory, seconds_in_turn

from hpcdeq.archive import Archive, SceneHeader, open_archive
from hpcdeq.inference import DenoiseSettings, denoise_archive, denoise_share, plan_archive
from hpcdeq.inference.applied import prepare
from hpcdeq.inference.batches import denoise_tiles
from hpcdeq.inference.ledger import Ledger, Record
from hpcdeq.inference.plan import share_of
from hpcdeq.inference.status import status_of
from hpcdeq.inference.tiles import TileSolution
from hpcdeq.models import CnnSettings, ModelSettings, SparseDenoiser, SupportSettings, load_model, save_model
from hpcdeq.solvers import Picard
from hpcdeq.tiling import tiles_of

PARTS = ("throughput", "workers", "planning", "ledger", "memory")


def throughput(archive: Archive, model_folder: Path, folder: Path, repeats: int, device: str) -> None:
    settings = DenoiseSettings(device=device)
    model = prepare(load_model(model_folder), settings)
    block, overlap = model.settings.block, settings.overlap_of(model)
    cuts = [
        np.ascontiguousarray(pixels[(slice(None), *tile.slices)])
        for pixels in (scene.read() for scene in archive.scenes())
        for tile in tiles_of(pixels.shape[1], pixels.shape[2], block, overlap)
    ]
    out = folder / "out.zarr"
    plan_archive(archive, model_folder, out, settings)

    def worker() -> None:
        for name in ("out.zarr", "out.zarr.ledger"):
            shutil.rmtree(folder / name, ignore_errors=True)
        plan_archive(archive, model_folder, out, settings)
        denoise_share(out)

    def bare() -> None:
        for _ in denoise_tiles(model, cuts, settings):
            pass

    seconds = seconds_in_turn({"bare model": bare, "worker": worker}, repeats)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    pixels = sum(scene.extent.height * scene.extent.width for scene in archive.scenes())
    print(
        f"{len(archive)} scenes, {pixels / 1e6:.2f} Mpixel, {len(cuts)} tiles, {torch.get_num_threads()} threads"
    )
    for name, taken in seconds.items():
        print(
            f"{name:12} {medians[name]:7.2f} s (min {min(taken):.2f}, max {max(taken):.2f}) "
            f"{pixels / 1e6 / medians[name]:.3f} Mpixel/s  {medians['bare model'] / medians[name]:.2f} x bare"
        )


def workers(archive: Archive, model_folder: Path, folder: Path, repeats: int, device: str) -> None:
    taken: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for count in taken:
            out = folder / "out.zarr"
            for name in ("out.zarr", "out.zarr.ledger"):
                shutil.rmtree(folder / name, ignore_errors=True)
            plan_archive(archive, model_folder, out, DenoiseSettings(device=device))
            context = multiprocessing.get_context("spawn")
            start = context.Barrier(count + 1)
            processes = [
                context.Process(target=_worker, args=(out, worker, count, start)) for worker in range(count)
            ]
            for process in processes:
                process.start()
            start.wait()
            begin = time.perf_counter()
            for process in processes:
                process.join()
            taken[count].append(time.perf_counter() - begin)
    one, two = (statistics.median(seconds) for seconds in taken.values())
    for count, seconds in taken.items():
        print(
            f"{count} workers: {statistics.median(seconds):.2f} s (min {min(seconds):.2f}, max {max(seconds):.2f})"
        )
    print(f"2 workers are {one / two:.2f} x one, efficiency {one / two / 2:.2f}")


def _worker(out: Path, worker: int, count: int, start: Any) -> None:
    torch.set_num_threads(1)
    start.wait()
    denoise_share(out, worker, count)


def planning(folder: Path, model_folder: Path, scenes: int) -> None:
    archive = _archive_of(folder / "many.zarr", load_model(model_folder).bands, 70)
    for i in range(1, scenes):
        shutil.copytree(archive.path / "s0", archive.path / f"s{i}")
    begin = time.perf_counter()
    plan_archive(archive, model_folder, folder / "planned.zarr", DenoiseSettings())
    planned = time.perf_counter()
    job = Ledger(Archive(folder / "planned.zarr")).job()
    share_of(job.scenes, 3, 16)
    shared = time.perf_counter()
    status_of(folder / "planned.zarr")
    print(
        f"{scenes} scenes: planned in {planned - begin:.1f} s, a worker finds its share in {shared - planned:.1f} s, "
        f"status in {time.perf_counter() - shared:.1f} s"
    )


def ledger(archive: Archive, model_folder: Path, folder: Path) -> None:
    out = folder / "out.zarr"
    plan_archive(archive, model_folder, out, DenoiseSettings())
    job = Ledger(Archive(out)).job()
    unit = next(job.scenes[0].units())
    found = Ledger(Archive(out))
    record = Record(
        checksums={f"radiance/c/0/{i}/0": i for i in range(25)},
        tiles=[TileSolution(0, 0, 1e-3, 20, True)] * 1089,
    )
    taken = []
    for _ in range(50):
        begin = time.perf_counter()
        found.write(unit, record)
        found.read(unit)
        taken.append(time.perf_counter() - begin)
    print(f"a record of 25 shards and 1089 tiles, written and read: {1e3 * statistics.median(taken):.1f} ms")


def peak(edge: int, count: int) -> None:
    """Print the peak memory in MiB of denoising ``count`` scenes."""
    folder = Path(tempfile.mkdtemp(prefix="hpcdeq-bulk-"))
    try:
        atoms = torch.rand(31, 60)
        model = ModelSettings(
            prior=CnnSettings(layers=2, filters=4),
            support=SupportSettings(size=3, method="centroid_omp"),
            solver=Picard(iterations=1, tolerance=0),
        )
        save_model(SparseDenoiser(model, atoms / atoms.norm(dim=0)), folder / "model", {})
        archive = _archive_of(folder / "noisy.zarr", 31, edge)
        for i in range(1, count):
            shutil.copytree(archive.path / "s0", archive.path / f"s{i}")
        before = memory("VmRSS")
        begin = time.perf_counter()
        denoise_archive(
            archive, folder / "model", folder / "out.zarr", DenoiseSettings(device="cpu", overlap=0)
        )
        print(
            f"{count} scenes of {edge} px: {time.perf_counter() - begin:.0f} s, before {before:.0f} MiB, peak",
            memory("VmHWM"),
        )
    finally:
        shutil.rmtree(folder)


def _archive_of(path: Path, bands: int, edge: int) -> Archive:
    """An archive of one scene, of uint16 noise that is the same in every shard."""
    archive = open_archive(path, create=True)
    shape = (bands, edge, edge)
    draft = archive.draft("s0", SceneHeader(shape=shape, dtype=np.dtype(np.uint16), scale_factor=1 / 65535))
    for window in draft.scene.shards():
        noise = np.random.default_rng(0).integers(20000, 22000, (bands, window.height, window.width))
        draft.write(window, noise.astype(np.uint16))
    draft.publish()
    return archive


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scenes", type=int, default=10_000, help="that are planned")
    parser.add_argument("--edge", type=int, default=10_000, help="of the large scene, in pixels")
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak:
        peak(*asked.peak)
        return
    parts = asked.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    archive = open_archive(asked.archive)
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="hpcdeq-bulk-") as name:
            folder = Path(name)
            if part == "throughput":
                throughput(archive, asked.model, folder, asked.repeats, asked.device)
            elif part == "workers":
                workers(archive, asked.model, folder, asked.repeats, asked.device)
            elif part == "planning":
                planning(folder, asked.model, asked.scenes)
            elif part == "ledger":
                ledger(archive, asked.model, folder)
            else:
                _memory(asked)


def _memory(asked: argparse.Namespace) -> None:
    import subprocess

    for edge, count in ((1300, 6), (asked.edge, 1)):
        command = [
            sys.executable,
            __file__,
            asked.archive,
            "--model",
            str(asked.model),
            "--peak",
            str(edge),
            str(count),
        ]
        print(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip(), flush=True
        )


if __name__ == "__main__":
    main()
