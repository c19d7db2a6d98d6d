"""Archives for the jobs of the tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hpcdeq.archive import open_archive
from tests.conftest import add_scene, smooth_scene
from tests.slurm.lab import LabError


def add_real(archive: Path, scenes: Iterable[Path], edge: int) -> None:
    """Ingest the middles of real scenes: folders with a PNG of each band."""
    from PIL import Image

    from hpcdeq.archive.ingest import IngestOptions, ingest

    raw = archive.with_name(f"{archive.name}.raw")
    for scene in scenes:
        for band in sorted(scene.rglob("*.png")):
            crop = raw / scene.name / band.name
            crop.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(band) as image:
                x, y = ((size - edge) // 2 for size in image.size)
                image.crop((x, y, x + edge, y + edge)).save(crop)
    for outcome in ingest([raw], archive, IngestOptions()):
        if outcome.status == "failed":
            raise LabError(f"{outcome.name} was not ingested: {outcome.message}")


def add_made(archive: Path, sizes: Iterable[tuple[int, int]]) -> None:
    """Add made scenes of so many rows and columns, ``made00`` and so on."""
    opened = open_archive(archive, create=True)
    for i, size in enumerate(sizes):
        add_scene(opened, f"made{i:02}", smooth_scene(i, 31, *size))


def folders(parent: Path) -> list[Path]:
    """Scenes of a folder of real ones."""
    return sorted(path for path in parent.iterdir() if path.is_dir())
