"""Jobs on a real SLURM of three nodes: found, stopped, cut, queued again, and finished."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcdeq.cluster.request import JobRequest
from hpcdeq.cluster.submission import Submitted, submit
from hpcdeq.errors import SubmissionError
from tests.slurm import jobs
from tests.slurm.lab import ROOT, Lab, until

NODES = 3


@pytest.fixture
def cluster(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The lab, reached by the commands of this process."""
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, lab.environ[name])
    monkeypatch.chdir(ROOT)  # where jobs find the modules of the tests
    return lab


def start(folder: Path, work: Callable[..., Any], *arguments: Any, **asked: Any) -> Submitted:
    """Submit a job of three nodes with a process each."""
    request = JobRequest(nodes=NODES, time=asked.pop("time", "5"), partition="main", **asked)
    return submit(request, folder / "jobs", work, *arguments)


def counting(folder: Path, steps: int, later: int | None = None, **asked: Any) -> Submitted:
    """A job whose ranks count steps of 0.1 s."""
    folder.mkdir()
    return start(folder, jobs.count, str(folder), steps, 0.1, later, **asked)


def steps_of(folder: Path) -> list[list[tuple[int, int]]]:
    """(step, attempt) of every rank so far."""
    files = [folder / str(rank) for rank in range(NODES)]
    lines = [file.read_text().splitlines() if file.exists() else [] for file in files]
    return [[(int(step), int(attempt)) for step, attempt in map(str.split, rank)] for rank in lines]


def wait_for_steps(folder: Path, attempt: int = 0) -> None:
    until(
        lambda: all(rank and rank[-1][1] == attempt for rank in steps_of(folder)),
        lambda: f"attempt {attempt} on all ranks; so far {steps_of(folder)}",
    )


def check_that_it_went_on(folder: Path, steps: int, attempts: int) -> None:
    """Every rank took every step once, in that many attempts."""
    for rank in steps_of(folder):
        assert [step for step, _ in rank] == list(range(steps))
        assert {attempt for _, attempt in rank} == set(range(attempts))


def log_of(submitted: Submitted) -> str:
    return submitted.log.read_text()


def test_the_ranks_of_a_job_meet_across_nodes(cluster: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    submitted = start(folder, jobs.meet, str(tmp_path), cpus_per_task=2, slurm={"exclusive": ""})
    cluster.wait(submitted.id, "COMPLETED")
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(NODES)]
    assert [place["rank"] for place in found] == [0, 1, 2]
    assert {(place["world_size"], place["local_rank"], place["total"]) for place in found} == {(3, 0, 3)}
    assert {place["host"] for place in found} == {"n1", "n2", "n3"}
    assert {place["told"]["OMP_NUM_THREADS"] for place in found} == {"2"}
    logs = [folder / f"jobs/{submitted.id}_{rank}_log.out" for rank in range(NODES)]
    assert logs[0] == submitted.log
    assert all("Starting with JobEnvironment" in log.read_text() for log in logs)


def test_a_job_that_is_requeued_or_reaches_its_time_limit_goes_on_until_it_is_done(
    cluster: Lab, tmp_path: Path
) -> None:
    # SLURM looks at time limits twice a minute, and sends the signal up to a minute early: within the first half minute.
    limited = counting(tmp_path / "limited", 500, later=10, time="1", signal_seconds=55)
    requeued = counting(tmp_path / "requeued", 40)
    wait_for_steps(tmp_path / "requeued")
    cluster.run("scontrol", "requeue", requeued.id)
    for submitted in (requeued, limited):
        cluster.wait(submitted.id, "COMPLETED", seconds=120)
    check_that_it_went_on(tmp_path / "requeued", 40, attempts=2)
    assert f"job {requeued.id} is being ended or queued again by SLURM" in log_of(requeued)
    assert cluster.restarts(limited.id) == 1
    for rank in steps_of(tmp_path / "limited"):
        assert [step for step, _ in rank] == list(range(len(rank)))
        assert [attempt for _, attempt in rank] == [0] * (len(rank) - 10) + [1] * 10
    assert f"job {limited.id} asks to be queued again, to go on from its checkpoint" in log_of(limited)
    for submitted in (requeued, limited):
        *before, last = cluster.accounts(submitted.id, "State,ExitCode")
        assert last == ["COMPLETED", "0:0"]
        assert {state for state, _ in before} == {"REQUEUED"}, "none of its attempts counts as failed"


def test_a_job_whose_node_crashes_goes_on_elsewhere(cluster: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    request = JobRequest(nodes=2, time="5", partition="main")  # the third node is free
    submitted = submit(request, folder / "jobs", jobs.count, str(folder), 1000, 0.1, 10)
    until(
        lambda: (folder / "0").exists() and (folder / "1").exists(), lambda: f"two ranks: {log_of(submitted)}"
    )
    cluster.crash("n2")
    cluster.wait(submitted.id, "COMPLETED", seconds=120)
    assert cluster.accounts(submitted.id, "State") == [["NODE_FAIL"], ["COMPLETED"]]
    for rank in steps_of(folder)[:2]:
        assert [step for step, _ in rank] == list(range(len(rank)))
        assert [attempt for _, attempt in rank] == [0] * (len(rank) - 10) + [1] * 10


def test_a_copy_that_was_lost_from_sight_does_not_end_the_newer_one_with_it(
    cluster: Lab, tmp_path: Path
) -> None:
    """srun, at a failure, ends the step of that number: the newer copy's, once SLURM hears of the older one again."""
    ways = ("fenced", "alone")
    request = JobRequest(time="5", partition="main")  # both on the first node
    copies = [submit(request, tmp_path / how / "jobs", jobs.overtaken, str(tmp_path), how) for how in ways]
    until(lambda: all((tmp_path / f"{how}-first").exists() for how in ways), lambda: log_of(copies[0]))
    cluster.cut("n1")
    until(lambda: all((tmp_path / f"{how}-second").exists() for how in ways), lambda: log_of(copies[0]))
    time.sleep(1)
    cluster.heal("n1")
    for copy in copies:
        cluster.wait(copy.id, "COMPLETED")
        assert cluster.restarts(copy.id) == 1


def test_a_job_that_is_cancelled_stays_so_and_a_dead_rank_ends_all(cluster: Lab, tmp_path: Path) -> None:
    cancelled = counting(tmp_path / "cancelled", 1000)
    killed = counting(tmp_path / "killed", 1000)
    wait_for_steps(tmp_path / "cancelled")
    wait_for_steps(tmp_path / "killed")
    cluster.run("scancel", cancelled.id)
    os.kill(cluster.tasks(killed.id)[1].pid, signal.SIGKILL)
    cluster.wait(cancelled.id, "CANCELLED")
    cluster.wait(killed.id, "FAILED", seconds=20)
    assert "stopped after step" in log_of(cancelled)
    assert cluster.tasks(killed.id) == []
    assert (cluster.restarts(cancelled.id), cluster.restarts(killed.id)) == (0, 0)


def test_a_signal_while_the_processes_start_does_not_end_the_job(cluster: Lab, tmp_path: Path) -> None:
    submitted = counting(tmp_path / "run", 5)
    until(lambda: len(cluster.tasks(submitted.id)) == NODES, lambda: f"{NODES} tasks: {log_of(submitted)}")
    cluster.run("scancel", "--signal=USR2", submitted.id)
    assert steps_of(tmp_path / "run") == [[]] * NODES, "it came before the work began"
    cluster.wait(submitted.id, "COMPLETED")
    check_that_it_went_on(tmp_path / "run", 5, attempts=1)


def test_a_signal_while_the_processes_end_does_not_fail_the_job(cluster: Lab, tmp_path: Path) -> None:
    submitted = start(tmp_path, jobs.linger, str(tmp_path))
    until((tmp_path / "ending").exists, lambda: f"the end of a task: {log_of(submitted)}")
    cluster.run("scancel", "--signal=USR2", submitted.id)
    cluster.wait(submitted.id, "COMPLETED")
    assert cluster.restarts(submitted.id) == 0


def test_what_slurm_says_of_a_wrong_request_is_passed_on(cluster: Lab, tmp_path: Path) -> None:
    request = JobRequest(time="5", partition="gpux")
    with pytest.raises(SubmissionError, match=r"did not take the job: .*[Ii]nvalid partition"):
        submit(request, tmp_path / "jobs", jobs.count, str(tmp_path), 1, 0)


PROGRAM = """#!/bin/bash
# In place of hpcdeq: stops at a checkpoint when it is asked to; its second attempt ends well.
echo "$SLURM_PROCID/${SLURM_RESTART_COUNT:-0} $* on $OMP_NUM_THREADS"
[ -z "$SLURM_RESTART_COUNT" ] || exit 0
exec python3 -c '
import os, signal, sys, time
def stop(number, frame):
    time.sleep(os.environ["SLURM_PROCID"] == "0")  # it writes the checkpoint, and is the last to end
    sys.exit(75)
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, stop)
print("ready", flush=True)
time.sleep(60)'
"""


def test_the_sbatch_script_queues_a_job_again_that_stopped_when_asked_and_no_other(
    cluster: Lab, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/hpcdeq"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    size = (f"--nodes={NODES}", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=5")
    path = f"{program.parent}:{cluster.environ['PATH']}"
    signalled, killed = (
        cluster.sbatch(*size, "slurm/train.sbatch", "run=a b", "x=$(id);y", PATH=path) for _ in range(2)
    )
    for job in (signalled, killed):
        until(
            lambda job=job: cluster.output(job).count("ready") == NODES, lambda job=job: cluster.output(job)
        )  # type: ignore[misc]
    cluster.run("scancel", "--signal=USR2", signalled)
    # A task that dies is not asked to stop, and those that srun then ends are not to come back.
    os.kill(cluster.tasks(killed)[1].pid, signal.SIGKILL)
    cluster.wait(killed, "FAILED")
    cluster.wait(signalled, ("RUNNING", "COMPLETING", "PENDING", "COMPLETED"))
    cluster.wait(signalled, "COMPLETED")
    said = cluster.output(signalled).splitlines()
    for rank in range(NODES):
        assert {f"{rank}/{attempt} train run=a b x=$(id);y on 1" for attempt in (0, 1)} <= set(said)
    assert cluster.accounts(signalled, "State,ExitCode") == [["REQUEUED", "0:0"], ["COMPLETED", "0:0"]]
    assert cluster.restarts(killed) == 0


def test_the_scripts_are_sound_for_bash() -> None:
    scripts = [ROOT / "slurm/train.sbatch", *sorted((ROOT / "launch").glob("*.sh"))]
    for script in scripts:
        assert subprocess.run([shutil.which("bash") or "bash", "-n", script], check=False).returncode == 0
