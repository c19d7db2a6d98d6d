"""The lab is what it promises to be: a SLURM whose nodes can be lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.slurm.lab import ROOT, Lab, LabError, until

# Its first run does not end by itself.
PROGRAM = """#!/bin/sh
srun sh -c 'echo "run ${SLURM_RESTART_COUNT:-0} on $(hostname)"; [ "$SLURM_RESTART_COUNT" ] || sleep 300'
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "job.sh"
    file.write_text(PROGRAM)
    return file


def test_three_nodes_answer_by_their_own_names(lab):
    assert sorted(lab.srun("-N3", "hostname").split()) == ["n1", "n2", "n3"]


def test_a_node_is_reached_at_its_name_from_another(lab):
    listen = (
        "import socket; s = socket.create_server(('n2', 4000)); s.settimeout(30); s.accept(); print('met')"
    )
    call = (
        "import socket, time\n"
        "for _ in range(300):\n"
        "    try: socket.create_connection(('n2', 4000)); break\n"
        "    except OSError: time.sleep(0.1)\n"
    )
    program = (
        f'if [ $(hostname) = n2 ]; then {sys.executable} -c "{listen}"; else {sys.executable} -c "{call}"; fi'
    )
    assert lab.srun("-N2", "-w", "n1,n2", "sh", "-c", program) == "met\n"


def test_accounting_knows_a_finished_job(lab):
    job = lab.sbatch("--job-name=known", "--wrap", "exit 3")
    fields = "JobName,State,ExitCode"
    until(
        lambda: lab.sacct(job, fields) == [["known", "FAILED", "3:0"]],
        lambda: f"the job in {lab.sacct(job, fields)}",
    )


def test_waiting_for_a_state_that_cannot_come_ends_at_once(lab):
    job = lab.sbatch("--wrap", "echo broken; exit 1")
    with pytest.raises(LabError, match=r"it cannot come(.|\n)*printed:\nbroken"):
        lab.wait(job, "COMPLETED", seconds=60)


def test_a_requeued_job_runs_again_and_counts_it(lab, program):
    job = lab.sbatch("-w", "n1", program)
    lab.wait_for_output(job, "run 0 on n1\n")
    lab.run("scontrol", "requeue", job)
    lab.wait(job, "COMPLETED")
    assert lab.output(job).endswith("run 1 on n1\n")
    assert lab.restarts(job) == 1


def test_a_killed_task_is_found_from_outside_and_fails_its_job(lab):
    job = lab.sbatch("-N2", "-n3", "--wrap", "srun --kill-on-bad-exit sh -c 'echo up; sleep 300'")
    lab.wait_for_output(job, "up\nup\nup\n")
    tasks = lab.tasks(job)
    assert [task.rank for task in tasks] == [0, 1, 2]
    assert {task.node for task in tasks} == {"n1", "n2"}
    assert [task.rank for task in lab.tasks(job, step="batch")] == [0]
    os.kill(tasks[1].pid, signal.SIGKILL)
    lab.wait(job, "FAILED")
    assert lab.tasks(job) == []


def test_nothing_of_a_job_outlives_it(lab):
    job = lab.sbatch("--wrap", "srun sh -c 'setsid sleep 300 >/dev/null 2>&1 & echo up; sleep 300'")
    lab.wait_for_output(job, "up")
    assert "sleep 300" in lab.exec("n1", "ps", "ax")
    lab.run("scancel", job)
    lab.wait(job, "CANCELLED")
    until(
        lambda: "sleep 300" not in lab.exec("n1", "ps", "ax"),
        lambda: f"the end of all sleeping ones of\n{lab.exec('n1', 'ps', 'ax')}",
        seconds=20,
    )


def test_jobs_on_nodes_that_crash_run_again_elsewhere_or_once_the_node_is_back(lab, program):
    bound = lab.sbatch("-w", "n2", "-c2", program)
    lab.wait_for_output(bound, "run 0 on n2\n")
    free = lab.sbatch("-c2", program)
    lab.wait_for_output(free, "run 0 on ")
    node = lab.squeue("--jobs", free, "--format=%N").strip()
    lab.crash(node)
    lab.crash("n2")
    lab.start("n2")
    lab.wait(bound, "COMPLETED")
    assert lab.output(bound).endswith("run 1 on n2\n")
    lab.wait(free, "COMPLETED")
    assert "run 1 on n" in lab.output(free)
    assert f"run 1 on {node}" not in lab.output(free)
    assert lab.sacct(free)[0] == ["NODE_FAIL"]


def test_a_short_cut_harms_no_job(lab):
    job = lab.sbatch("-w", "n3", "--wrap", "srun sh -c 'echo up; sleep 3'")
    lab.wait_for_output(job, "up")
    lab.cut("n3")
    with pytest.raises(LabError, match="not done"):
        lab.srun("-w", "n3", "true", seconds=1)
    lab.heal("n3")
    lab.wait(job, "COMPLETED")
    assert lab.restarts(job) == 0


def test_an_urgent_job_pushes_others_out_after_their_signal(lab):
    program = "trap 'echo signalled; exit 0' USR2; echo up; while :; do sleep 0.1; done"
    victim = lab.sbatch("-w", "n1", "-n2", "--signal=USR2@10", "--wrap", f'srun -n1 bash -c "{program}"')
    lab.wait_for_output(victim, "up")
    urgent = lab.sbatch("-p", "urgent", "-w", "n1", "-n2", "--wrap", "true")
    lab.wait(urgent, "COMPLETED")
    assert "signalled" in lab.output(victim)


def test_the_tasks_of_an_array_are_jobs_of_their_own(lab):
    job = lab.sbatch("--array=0-1", "--wrap", "srun sh -c 'echo task $SLURM_ARRAY_TASK_ID; sleep 300'")
    for i in range(2):
        lab.wait_for_output(f"{job}_{i}", f"task {i}\n")
    (task,) = lab.tasks(f"{job}_1")
    assert [each.job for each in lab.tasks(job)] == [f"{job}_0", f"{job}_1"]
    os.kill(task.pid, signal.SIGKILL)
    lab.wait(f"{job}_1", "FAILED")
    assert lab.states(job) == {f"{job}_0": "RUNNING", f"{job}_1": "FAILED"}
    assert lab.exit_code(f"{job}_1") == (137, 0)


# Brings up a lab, looks around, and is killed.
OTHER = """
import os, signal, sys
from pathlib import Path
from tests.slurm.lab import Lab

lab = Lab(Path(sys.argv[1]))
lab.up(nodes=1)
print(lab.squeue() + lab.srun("hostname"), end="", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_labs_do_not_see_each_other_and_end_with_their_process(lab):
    mine = lab.sbatch("--wrap", "srun sleep 300")
    with tempfile.TemporaryDirectory(prefix="hpcdeq-lab-") as parent:
        other = Lab(Path(parent) / "lab")
        try:
            command = [sys.executable, "-c", OTHER, other.folder]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
            assert (done.returncode, done.stdout) == (-signal.SIGKILL, "n1\n"), done.stderr
            until(lambda: not other.folder.exists(), lambda: f"the end of {other.folder}", seconds=30)
        finally:
            other.down()
    assert lab.states(mine) == {mine: "RUNNING"}


def test_the_processes_of_srun_meet(lab):
    found = json.loads(
        lab.srun("-N3", sys.executable, "-m", "hpcdeq", "doctor", "--json", seconds=120, PYTHONPATH=str(ROOT))
    )
    processes = next(finding for finding in found if finding["name"] == "processes")
    assert (processes["state"], processes["detail"]) == ("ok", "3, started by slurm; all met")
