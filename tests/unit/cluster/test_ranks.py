from __future__ import annotations

import pytest

from hpcdeq.cluster.ranks import Place, first_host, place_of
from hpcdeq.errors import ConfigError

# As seen on real launchers; only what could mislead is kept of the rest.
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "n[1-2]",
}
BATCH = {
    "SLURM_JOB_ID": "77",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_NODELIST": "n[1-2]",
}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0"}


def test_alone() -> None:
    assert place_of({}) == Place()
    assert place_of(BATCH) == Place(), "a batch script is one process, however many tasks its job may start"


def test_torchrun_and_the_deepspeed_launcher() -> None:
    expected = Place(launcher="torchrun", rank=5, world_size=8, local_rank=1, address="n1", port=29500)
    assert place_of(TORCHRUN) == expected
    assert place_of(STEP | TORCHRUN) == expected, "torchrun under srun"


def test_a_slurm_step() -> None:
    place = place_of(STEP)
    assert (place.launcher, place.rank, place.world_size, place.local_rank) == ("slurm", 3, 4, 1)
    assert place.address == "n1"
    assert place.port is not None
    assert 15000 <= place.port < 30000
    assert place_of(STEP | {"SLURM_PROCID": "0"}).port == place.port, "all tasks of a step agree"
    for changed in ({"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_JOB_ID": "78"}):
        assert place_of(STEP | changed).port != place.port
    assert place_of(STEP | {"PMI_RANK": "3", "PMI_SIZE": "4"}) == place, "srun --mpi=pmi2"
    chosen = place_of(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"})
    assert (chosen.address, chosen.port) == ("10.0.0.1", 1234)


@pytest.mark.parametrize("mpi", [OPEN_MPI, MPICH], ids=["Open MPI", "MPICH"])
def test_mpi_counts_more_than_the_step_that_started_its_helpers(mpi: dict[str, str]) -> None:
    helper = STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    for environ in (mpi, BATCH | mpi, helper | mpi):
        place = place_of(environ)
        assert (place.launcher, place.rank, place.world_size, place.address, place.port) == (
            "mpi",
            1,
            2,
            None,
            None,
        )


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[03-05,9],login1", "gpu03"),
        ("gpu[7,9-11]", "gpu7"),
        ("rack[1-2]node[08-16]-ib,x", "rack1node08-ib"),
        ("a-b-12.cluster.org", "a-b-12.cluster.org"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ConfigError, match="LOCAL_RANK is not set"):
        place_of({k: v for k, v in TORCHRUN.items() if k != "LOCAL_RANK"})
    with pytest.raises(ConfigError, match="WORLD_SIZE='x' is not a number"):
        place_of(TORCHRUN | {"WORLD_SIZE": "x"})
    with pytest.raises(ConfigError, match="rank 5 of 2 processes, as torchrun says"):
        place_of(TORCHRUN | {"WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match="is not a list of nodes"):
        place_of(STEP | {"SLURM_STEP_NODELIST": ","})
