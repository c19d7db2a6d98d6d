from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdeq.cluster import request
from hpcdeq.cluster.request import JobRequest, job_request, slurm_options
from hpcdeq.errors import ConfigError

TEXTS = {
    "mem": "64G",
    "time": "4:00:00",
    "partition": "gpu_p2,gpu-p3",
    "account": "abc@v100",
    "qos": "qos_gpu-t3",
    "constraint": "[a100|h100]&ib*2",
    "job_name": "deq-fast.1",
}
HOSTILE = [
    "\n",
    "\r",
    "'",
    '"',
    ";",
    "$(id)",
    "`id`",
    "${HOME}",
    "\\",
    "<",
    ">",
    " ",
    "\t",
    "\0",
    "#",
    "%j",
    "\u2028",
    "٣",
    "é",
]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("240", 240),
        ("90:00", 90),
        ("0:30", 1),
        ("4:00:00", 240),
        ("4:00:01", 241),
        ("1-12", 36 * 60),
        ("1-12:30", 36 * 60 + 30),
        ("2-00:00:59", 48 * 60 + 1),
    ],
)
def test_times_are_read_as_slurm_reads_them(text: str, minutes: int) -> None:
    assert JobRequest(time=text, signal_seconds=1).minutes == minutes


def test_every_gpu_has_a_process_unless_told_otherwise() -> None:
    assert JobRequest().tasks == 1
    assert JobRequest(gpus_per_node=4).tasks == 4
    assert JobRequest(gpus_per_node=4, tasks_per_node=1).tasks == 1


@given(st.sampled_from(sorted(TEXTS)), st.sampled_from(HOSTILE), st.integers(0, 20))
def test_no_value_may_hold_what_a_shell_could_take_for_more(name: str, piece: str, at: int) -> None:
    value = TEXTS[name][:at] + piece + TEXTS[name][at:]
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} must be"):
        JobRequest(**{name: value})


@given(st.sampled_from(HOSTILE), st.integers(0, 9))
def test_nor_may_another_option_of_sbatch(piece: str, at: int) -> None:
    with pytest.raises(ConfigError, match="the value may hold"):
        JobRequest(slurm={"exclude": "n[1-3],n9"[:at] + piece + "n[1-3],n9"[at:]})
    with pytest.raises(ConfigError, match="is not an option of sbatch"):
        JobRequest(slurm={"exclude"[:at] + piece + "exclude"[at:]: "n3"})


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"nodes": 0}, "--nodes must be at least 1, got 0"),
        ({"nodes": "two"}, "--nodes must be a whole number; got 'two'"),
        ({"gpus-per-node": -1}, "--gpus-per-node must be at least 0, got -1"),
        ({"mem": "64 GB"}, "--mem must be a number with K, M, G or T, such as 64G; got '64 GB'"),
        ({"time": "soon"}, "--time must be minutes, minutes:seconds"),
        ({"time": "2"}, "--signal-seconds 120 must be less than --time 2"),
        ({"time": "0"}, "must be less than --time 0"),
        ({"slurm": {"nodes": "3"}}, "--slurm nodes: this has an option of its own, --nodes"),
        ({"slurm": {"ntasks-per-node": "3"}}, "this has an option of its own, --tasks-per-node"),
        ({"slurm": {"output": "x"}}, "--slurm output: hpcdeq decides this one"),
        ({"slurm": {"--exclude": "x"}}, "write it without dashes in front, e.g. --slurm exclude=n3"),
    ],
)
def test_a_wrong_value_is_one_clear_line(options: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job_request(options)
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_job_must_say_how_long_it_may_take() -> None:
    with pytest.raises(ConfigError, match=r"--time is not set: .* e.g. --time 4:00:00"):
        _ = JobRequest().minutes


def test_options_win_over_the_profile(tmp_path: Path) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text(
        "partition: gpu\ngpus-per-node: 4\ntime: 4:00:00\nslurm: {exclusive: '', exclude: n1}\n"
    )
    made = job_request(
        {"partition": "long", "nodes": 2, "mem": None, "slurm": slurm_options(["exclude=n2", "begin=now"])},
        str(profile),
    )
    assert made == JobRequest(
        partition="long",
        nodes=2,
        gpus_per_node=4,
        time="4:00:00",
        slurm={"exclusive": "", "exclude": "n2", "begin": "now"},
    )
    assert made.minutes == 240, "YAML's numbers to the base of 60 are not SLURM's"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("gpus_per_node: 4", "gpus_per_node: unknown key; did you mean 'gpus-per-node'?"),
        ("zzz: 4", "zzz: unknown key; valid keys: nodes, tasks-per-node"),
        ("nodes: [1, 2]", "nodes must be one value; got ['1', '2']"),
        (
            "slurm: exclusive",
            "slurm must be options and values of sbatch, such as exclusive: ''; got 'exclusive'",
        ),
        ("slurm: {exclude: [n1]}", "slurm must be options and values of sbatch"),
        ("- nodes", "must hold options and values"),
        ("{", "cannot read the profile"),
        ("nodes: !!python/object/apply:os.getcwd []", "nodes must be one value"),
    ],
)
def test_a_wrong_profile_is_named(tmp_path: Path, content: str, line: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        job_request({}, str(file))
    assert line in str(caught.value)
    assert str(file) in str(caught.value)


def test_profiles_have_names_and_all_of_them_are_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(path.stem for path in request.PROFILES.glob("*.yaml"))
    assert names == ["example-h100", "example-jeanzay", "lab"]
    for name in names:
        assert job_request({}, name).minutes > 5
    with pytest.raises(
        ConfigError, match="no profile 'lap'; there are: example-h100, example-jeanzay, lab; or"
    ):
        job_request({}, "lap")
    monkeypatch.setattr(request, "PROFILES", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"no profile 'lab', as there is no folder .*; give the path"):
        job_request({}, "lab")


def test_a_request_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        JobRequest().nodes = 3  # type: ignore[misc]
