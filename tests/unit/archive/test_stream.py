from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from hpcdeq.archive import Archive, Scene, open_archive
from hpcdeq.archive.stream import PatchStream
from hpcdeq.errors import SceneError
from hpcdeq.noise import Gaussian
from tests.conftest import add_scene, smooth_scene


def stream(archive: Archive, **changes: object) -> PatchStream:
    options: dict[str, object] = {
        "block": 32,
        "batch": 5,
        "seed": 1,
        "degradation": Gaussian(sigma=50.0),
        "shuffle_shards": 2,
    }
    return PatchStream(archive.scenes(), **{**options, **changes})  # type: ignore[arg-type]


def test_blocks_of_an_epoch_do_not_overlap_and_stay_in_their_shard(archive: Archive) -> None:
    patches = stream(archive)
    for epoch in range(3):
        covered = [np.zeros(scene.shape[1:], int) for scene in patches.scenes]
        blocks = [block for group in patches.order(epoch) for block in group]
        for block in blocks:
            assert block.window.intersect(block.shard) == block.window
            covered[block.scene][block.window.slices] += 1
        assert max(c.max() for c in covered) == 1
        assert len(blocks) == patches.blocks_per_epoch


def test_over_the_epochs_every_pixel_is_seen(archive: Archive) -> None:
    patches = stream(archive, block=65)  # small remainders: a corner is seen in one of 156 epochs
    covered = [np.zeros(scene.shape[1:], int) for scene in patches.scenes]
    for epoch in range(1500):
        for group in patches.order(epoch):
            for block in group:
                covered[block.scene][block.window.slices] += 1
    assert min(c.min() for c in covered) > 0


def test_an_epoch_is_the_same_with_any_number_of_threads_and_another_with_another_seed(
    archive: Archive,
) -> None:
    one, four, other, later = (
        list(stream(archive, workers=w, seed=s).batches(e))
        for w, s, e in [(1, 1, 0), (4, 1, 0), (1, 2, 0), (1, 1, 1)]
    )
    assert len(one) == stream(archive).batches_per_epoch
    for a, b in zip(one, four, strict=True):
        assert np.array_equal(a.clean, b.clean)
        assert np.array_equal(a.noisy, b.noisy)
    assert not np.array_equal(one[0].clean, other[0].clean)
    assert not np.array_equal(one[0].clean, later[0].clean)


def test_starting_late_gives_the_rest_of_the_epoch_and_decodes_only_what_it_needs(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(stream(archive).batches(0))
    read: list[object] = []
    original = Scene.stored
    monkeypatch.setattr(
        Scene, "stored", lambda self, window=None: read.append(window) or original(self, window)
    )
    for start in range(len(whole) + 1):
        read.clear()
        rest = list(stream(archive).batches(0, start))
        assert len(rest) == len(whole) - start
        assert all(np.array_equal(a.noisy, b.noisy) for a, b in zip(rest, whole[start:], strict=True))
    assert not read


def test_each_shard_is_decoded_once_a_pass(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, object]] = []
    original = Scene.stored
    monkeypatch.setattr(
        Scene, "stored", lambda self, window=None: read.append((self.name, window)) or original(self, window)
    )
    patches = stream(archive)
    list(patches.batches(0))
    assert len(read) == len(set(read)) == sum(len(list(scene.shards())) for scene in patches.scenes)


def test_blocks_are_the_scene_with_the_noise_asked_for(archive: Archive) -> None:
    patches = stream(archive, augment=False, batch=1)
    blocks = [block for group in patches.order(0) for block in group]
    for block, batch in zip(blocks, patches.batches(0), strict=True):
        window = block.window
        assert np.array_equal(
            batch.clean[0, :, : window.height, : window.width], patches.scenes[block.scene].read(window)
        )
        np.testing.assert_allclose((batch.noisy - batch.clean).std(), 50 / 255, rtol=0.05)
        np.testing.assert_allclose(batch.sigma, 50 / 255, rtol=1e-6)


def test_augmentation_gives_the_eight_symmetries(archive: Archive) -> None:
    plain = stream(archive, augment=False, batch=1)
    turned = stream(archive, augment=True, batch=1)
    seen = set()
    for a, b in zip(plain.batches(0), turned.batches(0), strict=True):
        symmetries = [
            np.rot90(m, k, axes=(1, 2)) for m in (a.clean[0], a.clean[0][:, :, ::-1]) for k in range(4)
        ]
        seen |= {i for i, s in enumerate(symmetries) if np.array_equal(s, b.clean[0])}
    assert len(seen) == 8


def test_scenes_smaller_than_a_block_are_extended(tmp_path: Path) -> None:
    archive = open_archive(tmp_path / "a", create=True)
    add_scene(archive, "tiny", smooth_scene(0, 7, 9, 14))
    (batch,) = stream(archive, augment=False).batches(0)
    assert batch.clean.shape == (1, 7, 32, 32)
    assert np.array_equal(batch.clean[0, :, :9, :14], archive["tiny"].read())


def test_batches_mix_scenes(tmp_path: Path) -> None:
    """The stated quality of the shuffle: with 16 shards of 16 scenes together, a batch of 16 sees 10 scenes on average."""
    archive = open_archive(tmp_path / "a", create=True)
    for i in range(16):
        add_scene(archive, f"s{i:02}", smooth_scene(i, 3, 130, 130))
    patches = stream(archive, batch=16, shuffle_shards=16)
    scenes = [block.scene for group in patches.order(0) for block in group]
    distinct = [len(set(scenes[i : i + 16])) for i in range(0, len(scenes) - 15, 16)]
    assert np.mean(distinct) > 9


def test_closing_the_iterator_stops_its_thread(archive: Archive) -> None:
    before = threading.active_count()
    batches = stream(archive).batches(0)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name == "hpcdeq-stream"]
    assert threading.active_count() <= before + 8  # dask keeps its pool


def test_a_damaged_chunk_ends_the_stream_with_its_name(archive: Archive) -> None:
    scene = archive["scene1"]
    file = scene.shard_path(next(scene.shards()))
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 3] ^= 0xFF
    file.write_bytes(damaged)
    with pytest.raises(SceneError, match="scene1: cannot read rows"):
        list(stream(archive).batches(0))


def test_scenes_with_different_bands_are_refused(archive: Archive) -> None:
    add_scene(archive, "other", smooth_scene(0, 5, 70, 70))
    with pytest.raises(ValueError, match=r"one band count, got \[5, 7\]"):
        stream(archive)


@pytest.mark.parametrize("batch", [1, 4, 7, 64])
@pytest.mark.parametrize("sizes", [(1, 2), (2, 3, 1), (3,), (5, 64)])
def test_the_parts_of_all_ranks_are_the_batches_of_one(
    archive: Archive, batch: int, sizes: tuple[int, ...]
) -> None:
    for epoch in range(2):
        whole = list(stream(archive, batch=batch).order(epoch))
        assert {len(blocks) for blocks in whole[:-1]} <= {batch}
        for size in sizes:
            ranks = [
                list(stream(archive, batch=batch, rank=r, world_size=size).order(epoch)) for r in range(size)
            ]
            for number, blocks in enumerate(whole):
                parts = [rank[number] for rank in ranks]
                assert [block for part in parts for block in part] == blocks
                assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_world_size_may_change_in_an_epoch_without_a_block_lost_or_repeated(archive: Archive) -> None:
    whole = [b for blocks in stream(archive, batch=6).order(0) for b in blocks]
    batches = stream(archive, batch=6).batches_per_epoch
    cuts = [0, 2, 3, batches - 1, batches]
    seen = []
    for begin, end, size in zip(cuts[:-1], cuts[1:], (1, 2, 3, 1), strict=True):
        for rank in range(size):
            part = stream(archive, batch=6, rank=rank, world_size=size).order(0, begin)
            seen += [block for _, blocks in zip(range(begin, end), part, strict=False) for block in blocks]
    assert len(seen) == len(set(seen)) == len(whole)
    assert set(seen) == set(whole)


def test_a_rank_reads_its_own_share_of_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = open_archive(tmp_path / "a", create=True)
    for i in range(12):
        add_scene(archive, f"s{i:02}", smooth_scene(i, 3, 270, 530))
    patches = stream(archive, batch=4)
    shards = sum(len(list(scene.shards())) for scene in patches.scenes)
    read: list[tuple[str, object]] = []
    original = Scene.stored
    monkeypatch.setattr(
        Scene, "stored", lambda self, window=None: read.append((self.name, window)) or original(self, window)
    )
    total = 0
    for rank in range(2):
        read.clear()
        list(stream(archive, batch=4, rank=rank, world_size=2).batches(0))
        assert len(read) == len(set(read)), "none twice"
        total += len(read)
    # In the last batches a rank may read what another one has in use: at most what the lanes use at a time.
    assert shards <= total <= shards + 4


def test_the_blocks_of_a_bad_shard_are_left_out_and_named_and_nothing_else_changes(archive: Archive) -> None:
    whole = list(stream(archive, batch=4, augment=False).batches(0))
    scene = archive["scene1"]
    file = scene.shard_path(next(scene.shards()))
    file.write_bytes(file.read_bytes()[:-100])
    patches = stream(archive, batch=4, augment=False, on_bad_chunk="skip")
    order = list(patches.order(0))
    rest = list(patches.batches(0))
    (error,) = patches.left_out
    assert "scene1: cannot read rows" in error
    for blocks, before, after in zip(order, whole, rest, strict=True):
        good = [i for i, block in enumerate(blocks) if patches.scenes[block.scene].name != "scene1"]
        assert np.array_equal(after.noisy, before.noisy[good])
        assert after.planned == before.planned == len(blocks)
    assert sum(len(b.clean) for b in rest) < sum(len(b.clean) for b in whole)


def test_a_process_that_leaves_an_iterator_open_ends(tmp_path: Path) -> None:
    """From Python 3.13 on a thread that reads ahead stands still at the end, and waiting for it would be for ever."""
    archive = open_archive(tmp_path / "large.zarr", create=True)
    add_scene(archive, "scene", smooth_scene(0, 7, 300, 300))  # more than is read ahead
    code = (
        "import sys; from pathlib import Path\n"
        "from hpcdeq.archive import open_archive\n"
        "from hpcdeq.archive.stream import PatchStream\n"
        "from hpcdeq.noise import Gaussian\n"
        "scenes = open_archive(Path(sys.argv[1])).scenes()\n"
        "batches = PatchStream(scenes, block=24, batch=2, seed=0, degradation=Gaussian(sigma=10)).batches(0)\n"
        "next(batches)"
    )
    done = subprocess.run([sys.executable, "-c", code, archive.path], timeout=60, check=False)
    assert done.returncode == 0
