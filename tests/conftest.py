"""Settings for all tests, and the scenes they share."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from hpcdeq.archive import Archive, SceneHeader, open_archive

# Without a GPU Triton interprets its kernels, which it decides when it is imported: some test may import it early, through torch.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A busy machine is no bug, and a test that fails must fail again.
settings.register_profile("hpcdeq", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("hpcdeq")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the tests, the tests of a file stay together; those that start processes follow each other."""
    for item in items:
        alone = "unit" not in item.path.relative_to(Path(__file__).parent).parts
        item.add_marker(pytest.mark.xdist_group("processes" if alone else str(item.path)))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real scenes, named by HPCDEQ_DATA."""
    folder = os.environ.get("HPCDEQ_DATA")
    if not folder:
        pytest.skip("set HPCDEQ_DATA to the folder of real scenes (cave/, formats/) to run this")
    return Path(folder).resolve()


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def alone() -> dict[str, str]:
    """The environment of processes that meet on this host, without what a launcher around the tests has told them."""
    known = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {
        k: v for k, v in os.environ.items() if k not in known and not k.startswith(("SLURM_", "OMPI_", "PMI"))
    }
    return kept | {"GLOO_SOCKET_IFNAME": "lo"}  # the host's name may lead nowhere, as in some containers


def smooth_scene(seed: int, bands: int, height: int, width: int) -> np.ndarray:
    """A scene in [0, 1] with smooth spectra and some edges, float32 (band, y, x)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 64.0
    abundances = np.stack([np.sin(a * y + b * x + c) for a, b, c in rng.uniform(0.5, 3, (3, 3))])
    abundances += np.stack([(np.sin(a * y) * np.sin(a * x) > 0.3) for a in rng.uniform(1, 4, 3)])
    spectra = np.stack([np.sin(np.linspace(p, p + q, bands)) for p, q in rng.uniform(0, 3, (3, 2))])
    scene = np.tensordot(spectra.T, abundances, axes=1)
    scene = (scene - scene.min()) / (scene.max() - scene.min())
    return scene.astype(np.float32)


def add_scene(archive: Archive, name: str, values: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Put (band, y, x) values in [0, 1] into an archive, as uint16."""
    header = SceneHeader(
        shape=values.shape,
        dtype=np.dtype(np.uint16),
        scale_factor=1 / 65535,
        wavelengths=np.linspace(400, 700, values.shape[0]),
        has_mask=valid is not None,
        attributes={"source": name},
    )
    draft = archive.draft(name, header)
    stored = np.round(values * 65535).astype(np.uint16)
    for window in draft.scene.shards():
        draft.write(window, stored[(slice(None), *window.slices)])
        if valid is not None:
            draft.write_mask(window, valid[window.slices])
    draft.publish()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Three small scenes of 7 bands, of different sizes."""
    archive = open_archive(tmp_path / "clean.zarr", create=True)
    for i, (height, width) in enumerate([(400, 140), (70, 90), (131, 65)]):
        add_scene(archive, f"scene{i}", smooth_scene(i, 7, height, width))
    return archive
