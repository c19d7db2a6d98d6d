from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdeq.cluster.local import run_local
from hpcdeq.cluster.request import JobRequest
from hpcdeq.cluster.slurm import cancel, end_held
from hpcdeq.cluster.submission import Submitted, sbatch_text, submit, submit_each
from hpcdeq.errors import ConfigError, JobError, SubmissionError
from tests.slurm import fake, jobs
from tests.slurm.fake import FakeSlurm
from tests.slurm.lab import ROOT

SMALLEST = """\
#!/bin/bash

# Parameters
#SBATCH --job-name=hpcdeq
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/a/jobs/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=240

# setup
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/a/jobs/%j_%t_log.out --open-mode=append --kill-on-bad-exit=1 --wait=0 \
bash -c 'trap "" USR1 USR2 TERM; exec "$@"' hpcdeq PYTHON -u -m submitit.core._submit /runs/a/jobs
"""
ARRAY = """\
#!/bin/bash

# Parameters
#SBATCH --array=0-15%4
#SBATCH --gpus-per-node=2
#SBATCH --job-name=hpcdeq-denoise
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/out.ledger/jobs/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=240

# setup
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /out.ledger/jobs/%A_%a_%t_log.out --open-mode=append --kill-on-bad-exit=0 --wait=0 \
bash -c 'trap "" USR1 USR2 TERM; exec "$@"' hpcdeq PYTHON -u -m submitit.core._submit /out.ledger/jobs
"""
FULL = """\
#!/bin/bash

# Parameters
#SBATCH --account=abc@v100
#SBATCH --constraint='[a100|h100]&ib'
#SBATCH --cpus-per-task=8
#SBATCH --exclude='n[1-3]'
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --job-name=deq
#SBATCH --mem=480G
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/runs/a b/jobs/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1441

# setup
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/runs/a b/jobs/%j_%t_log.out' --open-mode=append --kill-on-bad-exit=1 --wait=0 --cpus-per-task=8 \
bash -c 'trap "" USR1 USR2 TERM; exec "$@"' hpcdeq PYTHON -u -m submitit.core._submit '/runs/a b/jobs'
"""


def text_of(request: JobRequest, folder: Path) -> str:
    return sbatch_text(request, folder).replace(shlex.quote(sys.executable), "PYTHON")


def test_the_smallest_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # neither srun nor sbatch
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    assert text_of(JobRequest(time="4:00:00"), Path("/runs/a/jobs")) == SMALLEST
    assert list(tmp_path.iterdir()) == []


def test_an_array_of_jobs_on_a_node_each() -> None:
    request = JobRequest(time="4:00:00", nodes=16, gpus_per_node=2, job_name="hpcdeq-denoise")
    text = sbatch_text(request, Path("/out.ledger/jobs"), parallel=4)
    assert text.replace(shlex.quote(sys.executable), "PYTHON") == ARRAY


def test_what_is_submitted_as_an_array_is_the_text_of_the_dry_run(
    fake_slurm: FakeSlurm, tmp_path: Path
) -> None:
    request, folder = JobRequest(time="5", nodes=3), tmp_path / "jobs"
    submitted = submit_each(request, folder, jobs.meet, [("a",), ("b",), ("c",)], parallel=2)
    assert [job.id for job in submitted] == ["77_0", "77_1", "77_2"]
    assert submitted[0].script.read_text() == sbatch_text(request, folder, parallel=2)
    assert len(fake_slurm.calls("sbatch")) == 1


def number_the_jobs(slurm: FakeSlurm, most: int = 99) -> None:
    """Answer with 1, 2, 3, ... and refuse those beyond the most."""
    (slurm.folder / "sbatch").write_text(f"""#!/bin/sh
echo "$0 $@" >>{slurm.folder}/calls
number=$(grep -c ^{slurm.folder}/sbatch {slurm.folder}/calls)
if [ $number -gt {most} ]; then echo submit limit >&2; exit 1; fi
echo Submitted batch job $number
""")


def test_a_site_that_bounds_arrays_gets_several(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    fake_slurm.answers("scontrol", "MaxArraySize            = 11")
    request, folder = JobRequest(time="5", nodes=25), tmp_path / "jobs"
    number_the_jobs(fake_slurm)
    submitted = submit_each(request, folder, jobs.meet, [(str(i),) for i in range(25)], parallel=7)
    assert len({job.id for job in submitted}) == 25
    texts = [file.read_text() for file in sorted(folder.glob("*_submission.sh"))]
    arrays = sorted(line for text in texts for line in text.splitlines() if "--array" in line)
    assert arrays == ["#SBATCH --array=0-7%2", "#SBATCH --array=0-7%2", "#SBATCH --array=0-8%3"]
    with pytest.raises(
        ConfigError, match="not fewer than 3 jobs can run at a time, got 2; ask for at most 20 jobs"
    ):
        submit_each(request, folder, jobs.meet, [(str(i),) for i in range(25)], parallel=2)
    assert len(fake_slurm.calls("sbatch")) == 3


def test_of_several_arrays_all_are_taken_or_none(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    fake_slurm.answers("scontrol", "MaxArraySize            = 11")
    request, folder = JobRequest(time="5", nodes=25), tmp_path / "jobs"
    number_the_jobs(fake_slurm, most=2)
    items = [(str(i),) for i in range(25)]
    with pytest.raises(
        SubmissionError,
        match="the jobs that sbatch took before are ended again: 1, 2; sbatch did not take the job: submit limit",
    ):
        submit_each(request, folder, jobs.meet, items, parallel=25)
    assert fake_slurm.calls("scancel") == ["1 2"]
    fake_slurm.answers("scancel", "not now", code=1)
    number_the_jobs(fake_slurm, most=4)
    with pytest.raises(SubmissionError, match="could not be ended: scancel 4: not now"):
        submit_each(request, folder, jobs.meet, items, parallel=25)


def test_jobs_are_cancelled_by_their_folder(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    assert cancel(folder) == []
    submit(JobRequest(time="5"), folder, jobs.meet, "x")
    assert cancel(folder) == []
    fake_slurm.answers("squeue", "12\n77")
    assert cancel(folder) == ["77"]
    assert fake_slurm.calls("scancel") == ["77"]


def test_jobs_that_slurm_holds_for_ever_are_ended_and_no_others(
    fake_slurm: FakeSlurm, tmp_path: Path
) -> None:
    folder = tmp_path / "jobs"
    submit(JobRequest(time="5"), folder, jobs.meet, "x")
    held = "launch failed requeued held"
    fake_slurm.answers("squeue", f"77 77_0 JobHeldUser\n77 77_1 {held}\n12 12_0 {held}\n77 77_2 Priority")
    assert end_held(folder) == ["77_1"]
    assert fake_slurm.calls("scancel") == ["77_1"]
    fake_slurm.answers("squeue", "slurm_load_jobs error: Unable to contact slurm controller", code=1)
    assert end_held(folder) == []


def test_a_job_with_all_options() -> None:
    request = JobRequest(
        nodes=16,
        gpus_per_node=4,
        cpus_per_task=8,
        mem="480G",
        time="1-00:00:30",
        partition="gpu",
        account="abc@v100",
        qos="long",
        constraint="[a100|h100]&ib",
        job_name="deq",
        signal_seconds=300,
        slurm={"exclusive": "", "exclude": "n[1-3]"},
    )
    assert text_of(request, Path("/runs/a b/jobs")) == FULL


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("mem", "partition", "account", "qos", "constraint", "job_name"), st.text(max_size=9)
        )
        | {"slurm": st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=2)},
    ),
    st.text(max_size=9),
)
def test_whatever_is_asked_for_the_text_is_options_and_one_fixed_command(
    asked: dict[str, str], name: str
) -> None:
    try:
        request = JobRequest(time="5", **asked)  # type: ignore[arg-type]
        folder = Path("/runs", name.lstrip("/"), "jobs")
        lines = sbatch_text(request, folder).splitlines()
    except (ConfigError, ValueError):  # ValueError: a path cannot hold a NUL
        return
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert all(len(shlex.split(option)) == 1 for option in options)
    assert not any(piece in option.replace("'", "") for option in options for piece in '"`$;\\<>#')
    fixed = [line for line in lines if not line.startswith("#SBATCH ")]
    quoted = shlex.quote(str(folder)), shlex.quote(f"{folder}/%j_%t_log.out")
    expected = SMALLEST.replace("/runs/a/jobs/%j_%t_log.out", quoted[1]).replace(
        "_submit /runs/a/jobs", f"_submit {quoted[0]}"
    )
    assert [line.replace(shlex.quote(sys.executable), "PYTHON") for line in fixed] == [
        line for line in expected.splitlines() if not line.startswith("#SBATCH ")
    ]


@pytest.mark.parametrize(
    "name", ["a\nb", "a'b", 'a"b', "a;b", "a$(id)", "a`id`", "a%jb", "a\\b", "a#b", "a&b"]
)
def test_a_folder_with_a_dangerous_name_is_refused(name: str, fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    for make in (sbatch_text, lambda *args: submit(*args, jobs.meet, "")):
        with pytest.raises(ConfigError, match="choose another with run=FOLDER"):
            make(JobRequest(time="5"), tmp_path / name / "jobs")
    assert not (tmp_path / name).exists()
    assert fake_slurm.calls("sbatch") == []


def test_what_is_submitted_is_the_text_of_the_dry_run(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    request = JobRequest(time="5", nodes=2)
    folder = tmp_path / "run" / "jobs"
    submitted = submit(request, folder, jobs.meet, "x")
    assert submitted.id == "77"
    assert submitted.log == folder / "77_0_log.out"
    assert submitted.script.parent == folder
    assert submitted.script.read_text() == sbatch_text(request, folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(fake_slurm.calls("sbatch")) == 1
    assert (folder / "77_submitted.pkl").stat().st_size < 2000, "names and plain values, no code"


def test_a_job_submitted_from_inside_a_job_does_not_take_its_place(
    fake_slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CONF", "SBATCH_ACCOUNT", "SRUN_CPUS_PER_TASK", "RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    seen = tmp_path / "seen"
    (fake_slurm.folder / "sbatch").write_text(f"#!/bin/sh\nenv >{seen}\necho Submitted batch job 78\n")
    submit(JobRequest(time="5"), tmp_path / "jobs", jobs.meet, "x")
    names = {line.split("=")[0] for line in seen.read_text().splitlines()}
    assert {"SLURM_CONF", "SBATCH_ACCOUNT"} <= names, "the site's and the user's own settings"
    assert not names & {"SLURM_JOB_ID", "SRUN_CPUS_PER_TASK", "RANK", "MASTER_ADDR"}
    assert os.environ["RANK"] == "1"


def test_a_run_that_is_in_the_queue_is_not_submitted_twice(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    request, folder = JobRequest(time="5"), tmp_path / "run" / "jobs"
    submit(request, folder, jobs.meet, "x")
    fake_slurm.answers("squeue", "12\n77")
    with pytest.raises(
        ConfigError, match=f"{tmp_path / 'run'} is queued or running already as job 77.*afterany:77"
    ):
        submit(request, folder, jobs.meet, "x")
    submit(JobRequest(time="5", slurm={"dependency": "afterany:77"}), folder, jobs.meet, "x")
    submit(request, tmp_path / "other", jobs.meet, "x")
    assert len(fake_slurm.calls("sbatch")) == 3


def test_the_words_of_sbatch_are_passed_on_once(
    fake_slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_slurm.answers("sbatch", "sbatch: error: invalid partition specified: gpux", code=1)
    with pytest.raises(SubmissionError, match="did not take the job: sbatch: error: invalid partition"):
        submit(JobRequest(time="5"), tmp_path / "jobs", jobs.meet, "x")
    assert capsys.readouterr().err == "", "the error is told by whoever catches it"


def test_without_slurm_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SubmissionError, match="sbatch is not on PATH: submit from a login node"):
        submit(JobRequest(time="5"), tmp_path / "jobs", jobs.meet, "x")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_submissions_is_the_users_own(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir(mode=0o777)
    submit(JobRequest(time="5"), folder, jobs.meet, "x")
    assert folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").touch()
    others = [tmp_path / "link", tmp_path / "file"]
    if os.getuid() == 0:
        (tmp_path / "theirs").mkdir()
        os.chown(tmp_path / "theirs", 65534, -1)
        others.append(tmp_path / "theirs")
    for other in others:
        with pytest.raises(ConfigError, match="must be a folder of your own"):
            submit(JobRequest(time="5"), other, jobs.meet, "x")


def start_task(submitted: Submitted) -> subprocess.Popen[str]:
    """The only task of a job, as srun would start it."""
    command = shlex.split(submitted.script.read_text().splitlines()[-1])
    step = {
        "SLURM_JOB_ID": "77",
        "SLURM_PROCID": "0",
        "SUBMITIT_EXECUTOR": "slurm",
        "PYTHONPATH": str(Path.cwd()),
    }
    return subprocess.Popen(
        command[command.index("bash") :],
        env=os.environ | step,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ignores(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(mask >> (number - 1) & 1)


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    while not file.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("asked", "seen", "refused", "requeues", "code"),
    [
        ("SIGUSR2", "RUNNING N/A", False, 1, 0),
        ("SIGUSR1", "RUNNING 2026-11-23T12:37:40", False, 1, 0),
        ("SIGUSR2", None, False, 1, 0),
        ("SIGUSR2", "COMPLETING N/A", True, 0, 0),  # preempted or requeued meanwhile
        ("SIGUSR2", "RUNNING N/A", True, 3, 75),
        ("SIGTERM", "RUNNING 2026-11-23T12:37:40", False, 1, 0),  # the grace time of a preemption
        ("SIGTERM", "COMPLETING N/A", False, 0, 0),  # scancel, scontrol requeue
        ("SIGTERM", "RUNNING N/A", False, 0, 75),  # srun, as another task died
        ("SIGTERM", None, False, 0, 75),  # it cannot be known: a job that was cancelled must not rise again
    ],
)
def test_a_job_that_stopped_at_a_checkpoint_is_queued_again_unless_slurm_has_decided(
    fake_slurm: FakeSlurm,
    tmp_path: Path,
    asked: str,
    seen: str | None,
    refused: bool,
    requeues: int,
    code: int,
) -> None:
    submitted = submit(JobRequest(time="5"), tmp_path / "jobs", jobs.count, str(tmp_path), 1000, 0.05)
    fake_slurm.answers("scontrol", "no" if refused else "", int(refused))
    fake_slurm.answers("squeue", f"{seen} 0" if seen else "timed out", int(seen is None))
    process = start_task(submitted)
    wait_for(tmp_path / "0", process)
    process.send_signal(signal.Signals[asked])
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert fake_slurm.calls("scontrol") == ["requeue 77"] * requeues
    assert "stopped after step" in said


def test_a_job_that_slurm_queues_again_while_it_is_asked_to_do_so_is_no_failure(
    fake_slurm: FakeSlurm, tmp_path: Path
) -> None:
    """The end of the job's processes may end scontrol too."""
    submitted = submit(JobRequest(time="5"), tmp_path / "jobs", jobs.count, str(tmp_path), 1000, 0.05)
    fake_slurm.answers("squeue", "RUNNING N/A 0")
    folder = fake_slurm.folder
    note, change = f"echo $0 $@ >>{folder}/calls", f"sed -i s/RUNNING/COMPLETING/ {folder}/squeue"
    (folder / "scontrol").write_text(f"#!/bin/sh\n{note}\n{change}\nkill -TERM $$\n")
    process = start_task(submitted)
    wait_for(tmp_path / "0", process)
    process.send_signal(signal.SIGUSR2)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert fake_slurm.calls("scontrol") == ["requeue 77"]


def test_a_signal_before_the_work_begins_is_left_to_slurm_and_one_before_it_listens_is_not_lost(
    fake_slurm: FakeSlurm, tmp_path: Path
) -> None:
    process = start_task(submit(JobRequest(time="5"), tmp_path / "jobs", jobs.late, str(tmp_path)))
    fake_slurm.answers("squeue", "RUNNING N/A 0")
    # The shell ignores it from its first command on, and Python after it.
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        while not ignores(process.pid, number):
            assert process.poll() is None
        process.send_signal(number)
    wait_for(tmp_path / "begun", process)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "SIGUSR1 came before" in said
    assert fake_slurm.calls("scontrol") == ["requeue 77"]


def test_half_a_file_of_a_killed_attempt_is_no_obstacle(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    """submitit itself gives up when it finds one."""
    submitted = submit(JobRequest(time="5"), tmp_path / "jobs", jobs.end, {})
    (tmp_path / "jobs/77_0_result.pkl.save_tmp").write_bytes(b"half")
    process = start_task(submitted)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said


def test_local_processes_find_each_other_and_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("RANK", "9")
    request = JobRequest(tasks_per_node=2, cpus_per_task=1, gpus_per_node=1)
    assert run_local(request, tmp_path / "jobs", jobs.meet, str(tmp_path)) == "rank 0 met"
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (found["rank"], found["world_size"], found["local_rank"], found["total"]) == (rank, 2, rank, 1)
        assert found["told"] == {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "2", "SLURM_JOB_ID": None}
    assert "2 processes; their logs: " in capsys.readouterr().err
    assert (tmp_path / "jobs").stat().st_mode & 0o777 == 0o700
    assert os.environ["RANK"] == "9"


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ({"0": "config", "1": "config"}, 2, "rank 0 of 2 failed; its log: "),
        ({"1": "crash"}, 1, "rank 1 of 2 failed; its log: "),
        ({"1": "kill"}, 1, "rank 1 of 2 failed; its log: "),
        ({"0": "stop", "1": "stop"}, 75, "stopped at a checkpoint; run the same command again"),
        ({"0": "partial"}, 3, "finished, but some of it failed; the logs that name it: "),
        ({"0": "partial", "1": "kill"}, 1, "rank 1 of 2 failed; its log: "),
        ({"0": "partial", "1": "stop"}, 75, "stopped at a checkpoint; run the same command again"),
    ],
)
def test_a_local_job_ends_with_the_exit_code_of_its_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: dict[str, str], code: int, line: str
) -> None:
    with pytest.raises(JobError, match=line) as caught:
        run_local(JobRequest(tasks_per_node=2), tmp_path / "jobs", jobs.end, how)
    assert caught.value.exit_code == code
    said = capsys.readouterr().err
    if code == 2:
        assert "error: rank 0 has a wrong setting" in said
    assert "success" not in said


def test_local_is_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--nodes must be 1, got 2"):
        run_local(JobRequest(nodes=2), tmp_path / "jobs", jobs.meet, "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5ebe9f43")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=GPU-5ebe9f43"):
        run_local(JobRequest(gpus_per_node=1), tmp_path / "jobs", jobs.meet, "")


@pytest.mark.parametrize(("restarts", "code"), [("", 0), ("1", 1)])
def test_of_the_sbatch_script_an_old_copy_does_not_fail_the_newer_one(
    tmp_path: Path, restarts: str, code: int
) -> None:
    """SLURM has started the job again once."""
    folder = tmp_path / "bin"
    slurm = fake.fake_slurm(folder)
    slurm.answers("squeue", "1")
    slurm.answers("hpcdeq", "overtaken", code=1)
    (folder / "srun").write_text('#!/bin/sh\nshift 3\nexec "$@"\n')
    (folder / "srun").chmod(0o755)
    told = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_RESTART_COUNT": restarts}
    environ = {**os.environ, **told, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", ROOT / "slurm/train.sbatch", "run=a"], env=environ, check=False)
    assert done.returncode == code
    assert slurm.calls("hpcdeq") == ["train run=a"]
