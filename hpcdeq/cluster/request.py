"""What a job asks of the cluster, checked before any of it reaches the text that sbatch reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from hpcdeq.documents import read_yaml_text, shortened
from hpcdeq.errors import ConfigError, suggestion

PROFILES = Path(__file__).parents[2] / "slurm" / "profiles"
"""Where profiles are found by name: in the checkout that hpcdeq runs from."""

# No pattern lets through what a shell, or a reader of #SBATCH lines, could take for anything but a value.
_WORDS = r"[A-Za-z0-9_.,@+-]+"
_TEXTS = {
    "mem": (r"[0-9]+[KMGT]?", "a number with K, M, G or T, such as 64G"),
    "partition": (_WORDS, "letters, digits and _ . , @ + -"),
    "account": (_WORDS, "letters, digits and _ . , @ + -"),
    "qos": (_WORDS, "letters, digits and _ . , @ + -"),
    "constraint": (r"[A-Za-z0-9_.,:@+*=&|()\[\]-]+", "letters, digits and _ . , : @ + * = & | ( ) [ ] -"),
    "job-name": (r"[A-Za-z0-9_.-]+", "letters, digits and _ . -"),
}
_TIME = re.compile(
    r"(?:(?P<days>[0-9]{1,9})-(?P<hours>[0-9]{1,9})(?::(?P<minutes>[0-9]{1,9})(?::(?P<seconds>[0-9]{1,9}))?)?"
    r"|(?:(?P<h>[0-9]{1,9}):)?(?P<m>[0-9]{1,9}):(?P<s>[0-9]{1,9})|(?P<only>[0-9]{1,9}))"
)
_SLURM_KEY = re.compile(r"[a-z][a-z0-9-]*")
_SLURM_VALUE = re.compile(r"[A-Za-z0-9_.,:@+*=&|()\[\]/-]*")
# The job relies on how these are set, or reads what sbatch prints.
_KEPT = (
    *(
        "array",
        "chdir",
        "error",
        "input",
        "no-requeue",
        "ntasks",
        "open-mode",
        "output",
        "parsable",
        "quiet",
        "requeue",
    ),
    *("signal", "test-only", "wait", "wrap"),
)


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What a job asks for; the names are those of sbatch's options.

    Raises
    ------
    ConfigError
        If a value is not of its kind: it names the option, the value and the rule.
    """

    nodes: int = 1
    """Number of nodes."""
    tasks_per_node: int | None = None
    """Processes on each; None: one for each GPU, or one."""
    gpus_per_node: int = 0
    """GPUs on each."""
    cpus_per_task: int | None = None
    """Cores of each process, which become its threads; None: the site's default."""
    mem: str | None = None
    """Memory of a node, such as ``64G``."""
    time: str | None = None
    """Longest time of one attempt, as sbatch takes it: ``240`` (minutes), ``4:00:00``, ``1-12``."""
    partition: str | None = None
    """Where to queue."""
    account: str | None = None
    """Who pays."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features of the nodes, such as ``a100|h100``."""
    job_name: str | None = None
    """Name in the queue."""
    signal_seconds: int = 120
    """How long before the end of its time the job is told to write a checkpoint; SLURM may tell it a minute earlier."""
    slurm: Mapping[str, str] = field(default_factory=dict)
    """Other options of sbatch, without dashes; an empty value is an option without one."""

    def __post_init__(self) -> None:
        for name, least in _COUNTS.items():
            count = getattr(self, _field(name))
            if count is not None and count < least:
                raise ConfigError(f"--{name} must be at least {least}, got {count}")
        for name, (pattern, rule) in _TEXTS.items():
            text = getattr(self, _field(name))
            if text is not None and not re.fullmatch(pattern, text):
                raise ConfigError(f"--{name} must be {rule}; got {shortened(repr(text))}")
        if self.time is not None and self.signal_seconds >= 60 * self.minutes:
            raise ConfigError(
                f"--signal-seconds {self.signal_seconds} must be less than --time {self.time}: the job is told to stop that long "
                "before its time is over"
            )
        for key, value in self.slurm.items():
            _check_slurm(key, value)

    @property
    def tasks(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def minutes(self) -> int:
        """Longest time of one attempt, in whole minutes as SLURM counts."""
        if self.time is None:
            raise ConfigError("--time is not set: say how long one attempt may take, e.g. --time 4:00:00")
        match = _TIME.fullmatch(self.time)
        if match is None:
            raise ConfigError(
                f"--time must be minutes, minutes:seconds, hours:minutes:seconds or days-hours[:minutes[:seconds]]; "
                f"got {self.time!r}"
            )
        part = {name: int(text or 0) for name, text in match.groupdict().items()}
        hours = 24 * part["days"] + part["hours"] + part["h"]
        seconds = 60 * (60 * hours + part["minutes"] + part["m"] + part["only"]) + part["seconds"] + part["s"]
        return -(-seconds // 60)


_COUNTS = {"nodes": 1, "tasks-per-node": 1, "gpus-per-node": 0, "cpus-per-task": 1, "signal-seconds": 1}
_OPTIONS = [f.name.replace("_", "-") for f in fields(JobRequest)]


def job_request(options: Mapping[str, Any], profile: str | None = None) -> JobRequest:
    """Make a request from options as people write them.

    Parameters
    ----------
    options
        Values by option (``gpus-per-node``), as text or numbers; None is one that was not given. ``slurm`` holds a mapping.
    profile
        Name or file of a profile, whose values the options win over.

    Raises
    ------
    ConfigError
        If there is no such profile, or an option or value is wrong.
    """
    given = {key: value for key, value in options.items() if value is not None}
    merged = _read_profile(profile) if profile is not None else {}
    merged |= given | {"slurm": merged.get("slurm", {}) | given.get("slurm", {})}
    try:
        for name in _COUNTS.keys() & merged.keys():
            merged[name] = _count(name, merged[name])
        return JobRequest(**{_field(name): value for name, value in merged.items()})
    except ConfigError as error:
        if profile is None:
            raise
        raise ConfigError(f"{error}; the profile is {profile}") from error


def slurm_options(pairs: list[str]) -> dict[str, str]:
    """Read ``key=value`` and ``key`` as other options of sbatch."""
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}


def _read_profile(name: str) -> dict[str, Any]:
    """Return the options in a profile, all as text."""
    file = Path(name)
    if "/" not in name and file.suffix not in (".yaml", ".yml"):
        file = PROFILES / f"{name}.yaml"
        if not file.is_file():
            known = ", ".join(sorted(path.stem for path in PROFILES.glob("*.yaml")))
            raise ConfigError(
                f"no profile {name!r}"
                + (f"; there are: {known}; or" if known else f", as there is no folder {PROFILES};")
                + " give the path of a YAML file"
            )
    try:
        # All values as text, like those of the command line: YAML would read 4:00:00 as 14400, a number to the base of 60.
        content = yaml.load(read_yaml_text(file), Loader=yaml.BaseLoader)
    except Exception as error:  # the parser raises whatever it likes
        raise ConfigError(f"cannot read the profile {file}: {shortened(str(error))}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the profile {file} must hold options and values, such as partition: gpu")
    for key, value in content.items():
        if key not in _OPTIONS:
            raise ConfigError(f"{file}: {shortened(str(key))}: unknown key; {suggestion(str(key), _OPTIONS)}")
        values = value.values() if key == "slurm" and isinstance(value, dict) else [value]
        if (key == "slurm") != isinstance(value, dict) or not all(isinstance(v, str) for v in values):
            rule = "options and values of sbatch, such as exclusive: ''" if key == "slurm" else "one value"
            raise ConfigError(f"{file}: {key} must be {rule}; got {shortened(repr(value))}")
    return content


def _count(name: str, value: int | str) -> int:
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,9}", value):
        raise ConfigError(f"--{name} must be a whole number; got {shortened(repr(value))}")
    return int(value)


def _check_slurm(key: str, value: str) -> None:
    if key in _OPTIONS or key == "ntasks-per-node":
        own = "tasks-per-node" if key == "ntasks-per-node" else key
        raise ConfigError(f"--slurm {key}: this has an option of its own, --{own}")
    if key in _KEPT:
        raise ConfigError(
            f"--slurm {key}: hpcdeq decides this one; sbatch slurm/train.sbatch leaves it to you"
        )
    if not _SLURM_KEY.fullmatch(key):
        raise ConfigError(
            f"--slurm {key!r} is not an option of sbatch; write it without dashes in front, e.g. --slurm exclude=n3"
        )
    if not _SLURM_VALUE.fullmatch(value):
        raise ConfigError(
            f"--slurm {key}: the value may hold letters, digits and _ . , : @ + * = & | ( ) [ ] / -; got {value!r}"
        )


def _field(option: str) -> str:
    return option.replace("-", "_")
