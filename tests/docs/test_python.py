"""Python blocks of the documentation run. What they read is made here, small; docs/extending.md has a test of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hpcdeq
from hpcdeq.archive import open_archive
from hpcdeq.inference import DenoiseSettings, denoise_archive
from hpcdeq.weights import find
from tests.conftest import add_scene, smooth_scene
from tests.docs.pages import PAGES, Block, Page

BLOCKS = [
    pytest.param(page, block, id=f"{page.name}:{block.line}")
    for page in PAGES
    if page.name != "docs/extending.md"
    for block in page.blocks
    if block.language == "python"
]


def make_archive(path: str, name: str) -> None:
    add_scene(open_archive(path, create=True), name, smooth_scene(1, 31, 40, 44))


def noisy_scene() -> dict[str, Any]:
    """What the blocks before have made."""
    make_archive("noisy.zarr", "lemon_slices")
    return {
        "hpcdeq": hpcdeq,
        "numpy": np,
        "scene": hpcdeq.open_archive("noisy.zarr")["lemon_slices"].radiance,
    }


def make_denoised() -> None:
    make_archive("noisy.zarr", "paints_ms")
    denoise_archive(
        open_archive("noisy.zarr"),
        find(Path("du-fast")),
        Path("denoised.zarr"),
        DenoiseSettings(device="cpu"),
    )


def two_images() -> dict[str, Any]:
    reference = smooth_scene(1, 5, 20, 20)
    return {"reference": reference, "estimate": reference + 0.01, "mask": np.ones((20, 20), bool)}


NEEDED = {
    "README.md": noisy_scene,
    "docs/python.md": noisy_scene,
    "docs/archive-format.md": lambda: make_archive("A", "paints_ms"),
    "docs/own-data.md": lambda: make_archive("try.zarr", "NAME"),
    "docs/first-hour.md": make_denoised,
    "docs/metrics.md": two_images,
}


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_python_blocks_run(page: Page, block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    given = NEEDED.get(page.name, dict)()
    exec(compile("\n" * block.line + block.text, page.name, "exec"), {"__name__": "example", **(given or {})})
