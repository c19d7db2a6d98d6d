"""An ablation: training runs that differ in what a file says, scored on the same scenes with the same noise."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpcdeq.archive import Archive
from hpcdeq.archive.splits import check_unseen
from hpcdeq.config import TrainConfig, load_train_config
from hpcdeq.console import say
from hpcdeq.console import table as text_table
from hpcdeq.documents import read_yaml_text, shortened
from hpcdeq.errors import ConfigError, PartialFailureError, PreemptedError, TrainingError, suggestion
from hpcdeq.inference import DenoiseSettings
from hpcdeq.models import learnt_scenes, load_model, read_card
from hpcdeq.studies.evaluation import Failure, compare_model, means
from hpcdeq.studies.page import write_whole
from hpcdeq.studies.tables import METRICS
from hpcdeq.training import train

Scores = dict[str, dict[str, float]]
"""Mean over the scenes, by noise level and metric."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RunPlan(BaseModel):
    """One run of a file: all keys but these are settings of ``hpcdeq train``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    config: str | None = None
    """YAML file of settings, relative to the study's; None is the study's."""
    after: str | None = None
    """Another run, whose model this one begins with; it is not pre-trained again."""


class StudyFile(BaseModel):
    """What a study's file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str
    config: str | None = None
    settings: dict[str, Any] = {}
    """Of all runs, by dotted names."""
    runs: Annotated[dict[str, RunPlan], Field(min_length=1)]


@dataclass(frozen=True)
class Scoring:
    """What runs are scored on, with the tiles that ``denoise`` uses by default."""

    clean: Archive
    sigmas: Sequence[float]
    """Noise levels on the scale of 0 to 255."""
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """A run of a study."""

    name: str
    changes: Mapping[str, Any]
    """What the file says of it."""
    config: TrainConfig
    after: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    run: Run
    scores: Scores = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    """How training went: steps, seconds a step, skipped steps, the last b, residual and spectral radius, best validation PSNR."""
    failure: str | None = None


def read_study(file: Path, out: Path, overrides: Sequence[str]) -> tuple[str, list[Run]]:
    """Read a study's file.

    Parameters
    ----------
    file
        YAML: ``about``, ``config``, ``settings`` of all runs, and ``runs`` by name.
    out
        Folder of the study; each run has a folder in it.
    overrides
        ``key.sub=value``, over all else.

    Returns
    -------
    tuple
        What the study is about, and its runs in an order in which each comes after the one it begins with.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key or value of it is wrong.
    """
    try:
        content = StudyFile.model_validate(yaml.safe_load(read_yaml_text(file)))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:10])
        raise ConfigError(f"{file} is not a study: {wrong}") from error
    except Exception as error:  # the parsers raise whatever they like
        raise ConfigError(f"cannot read the study {file}: {shortened(str(error))}") from error
    runs: dict[str, Run] = {}
    for name, plan in content.runs.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{file}: {shortened(repr(name))} cannot name a run, which has a folder of that name: use up to 100 letters, "
                "digits, '.', '_' or '-', beginning with a letter or digit"
            )
        changes = dict(plan.model_extra or {})
        settings = content.settings | changes
        if plan.after is not None:
            if plan.after not in runs:
                raise ConfigError(
                    f"{file}: run {name} comes after {plan.after!r}, which must be a run above it; "
                    f"{suggestion(plan.after, runs)}"
                )
            before = runs[plan.after].config.run / "model"
            settings |= {"training.start_from": str(before), "training.pretrain_steps": 0}
        base = plan.config or content.config
        try:
            config = load_train_config(
                None if base is None else file.parent / base,
                [*(_as_override(*item) for item in settings.items()), *overrides, f"run={out / name}"],
            )
        except ConfigError as error:
            raise ConfigError(f"{file}: run {name}: {error}") from error
        runs[name] = Run(name, changes, config, plan.after)
    return content.about, list(runs.values())


def chosen(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """Return the runs of these names, and those that they begin with; all if none is named."""
    known = {run.name: run for run in runs}
    wanted: set[str] = set()
    for name in names or known:
        if name not in known:
            raise ConfigError(f"the study has no run {name!r}; {suggestion(name, known)}")
        at: str | None = name
        while at is not None:
            wanted.add(at)
            at = known[at].after
    return [run for run in runs if run.name in wanted]


def carry_out(runs: Sequence[Run], scoring: Scoring) -> None:
    """Train and score runs, one after the other. One that is done is not done again, one that was interrupted goes on.

    Raises
    ------
    PreemptedError
        If a signal asked to stop.
    PartialFailureError
        If a run failed; the others were carried out.
    """
    failed = []
    for number, run in enumerate(runs, 1):
        say(f"run {number} of {len(runs)}: {run.name}")
        try:
            if run.after is not None and not (run.config.run.parent / run.after / "model").is_dir():
                raise TrainingError(f"{run.after}, which it begins with, has no model")
            if not _trained(run):
                train(run.config)
            if _scores_of(run, _what(run, scoring)) is None:
                _score(run, scoring)
        except PreemptedError:
            raise
        except (TrainingError, ConfigError) as error:
            write_whole(run.config.run / "failure.txt", f"{error}\n".encode())
            failed.append(f"{run.name}: {error}")
            say(f"failed: {failed[-1]}")
    if failed:
        raise PartialFailureError(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}")


def outcomes(runs: Sequence[Run], scoring: Scoring) -> list[Outcome]:
    """Return what is known of the runs."""
    found = []
    for run in runs:
        scores = _scores_of(run, _what(run, scoring))
        failure = run.config.run / "failure.txt"
        found.append(
            Outcome(
                run,
                scores or {},
                _training(run.config.run),
                failure.read_text().strip() if scores is None and failure.is_file() else None,
            )
        )
    return found


def _trained(run: Run) -> bool:
    """Whether the model of a run is there, and of just these settings: a longer training goes on."""
    folder = run.config.run / "model"
    if not (folder / "model.json").is_file():
        return False
    settings = run.config.model_dump(mode="json", exclude={"run"})
    return bool(read_card(folder)["provenance"].get("config") == settings)


def _as_override(key: str, value: Any) -> str:
    flow = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    return f"{key}={flow}"


def _what(run: Run, scoring: Scoring) -> dict[str, Any] | None:
    """What decides the scores of a run; None if it has no model yet."""
    model = run.config.run / "model" / "model.json"
    if not model.is_file():
        return None
    return {
        "model": json.loads(model.read_text())["weights_sha256"],
        "scenes": {name: scoring.clean[name].content_sha256 for name in scoring.clean.names()},
        "sigmas": list(scoring.sigmas),
        "seed": scoring.seed,
    }


def _scores_of(run: Run, what: dict[str, Any] | None) -> Scores | None:
    if what is None:
        return None
    try:
        kept = json.loads(_scores_path(run, what).read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return dict(kept["mean"]) if kept["of"] == what else None


def _scores_path(run: Run, what: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    return run.config.run / f"scores-{digest}.json"


def _score(run: Run, scoring: Scoring) -> None:
    folder = run.config.run / "model"
    clean = scoring.clean
    learnt = learnt_scenes(read_card(folder)["provenance"])
    check_unseen(clean.readable(clean.names()), learnt, f"the model {folder}")
    rows = []
    settings = DenoiseSettings(device=run.config.device)
    for found in compare_model(clean, load_model(folder), scoring.sigmas, scoring.seed, settings):
        if isinstance(found, Failure):
            raise TrainingError(f"scene {found.scene} cannot be scored: {found.message}")
        rows.append(found.row)
    mean = {f"{row.sigma:g}": asdict(row.denoised) for row in means(rows) if row.sigma is not None}
    what = _what(run, scoring)
    assert what is not None, "it was just trained"
    write_whole(_scores_path(run, what), (json.dumps({"of": what, "mean": mean}, indent=1) + "\n").encode())


def _training(folder: Path) -> dict[str, Any]:
    """How a run went, from its record."""
    try:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, json.JSONDecodeError):
        return {}
    last_phase = lines[-1]["phase"] if lines else None
    of_phase = [line for line in lines if line["phase"] == last_phase]
    steps = [line for line in of_phase if "loss" in line]
    validations = [line for line in of_phase if "validation_psnr" in line]
    found: dict[str, Any] = {"phase": last_phase, "steps": of_phase[-1]["step"] if of_phase else 0}
    if steps:
        found["step_seconds"] = float(np.median([line["step_seconds"] for line in steps]))
        found["skipped"] = steps[-1]["skipped"]
    if validations:
        found["validation_psnr"] = max(line["validation_psnr"] for line in validations)
        last = validations[-1]
        found |= {
            name: last[name] for name in ("b", "mu", "validation_residual", "spectral_radius") if name in last
        }
    return found


# As text


def as_text(about: str, found: Sequence[Outcome], sigmas: Sequence[float]) -> str:
    """Return the table as aligned text."""
    columns, rows = _cells(found, sigmas)
    return f"{about}\n\n{text_table(columns, rows)}"


def as_markdown(about: str, found: Sequence[Outcome], sigmas: Sequence[float]) -> str:
    """Return the table as Markdown."""
    columns, rows = _cells(found, sigmas)
    lines = [columns, ["---"] * len(columns), *rows]
    return f"{about}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_csv(found: Sequence[Outcome]) -> str:
    """Return one line for each run and noise level."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    training = ("steps", "step_seconds", "skipped", "validation_psnr", "b", "mu", *_STABILITY)
    writer.writerow(("run", "changes", "sigma", *METRICS, *training))
    for one in found:
        told = [one.training.get(name, "") for name in training]
        for sigma, scores in one.scores.items():
            row = (one.run.name, _said(one.run), sigma, *(scores[name] for name in METRICS), *told)
            writer.writerow(row)
    return out.getvalue()


_STABILITY = ("validation_residual", "spectral_radius")


def _cells(found: Sequence[Outcome], sigmas: Sequence[float]) -> tuple[list[str], list[list[str]]]:
    columns = ["run", "what is special", *(f"sigma {s:g}: PSNR, SSIM, SAM" for s in sigmas)]
    columns += ["b", "residual", "spectral radius", "skipped", "steps", "s a step"]
    rows = []
    for one in found:
        scores = [
            " / ".join(f"{at[name]:.{METRICS[name][1]}f}" for name in ("psnr", "ssim", "sam"))
            if (at := one.scores.get(f"{sigma:g}"))
            else "-"
            for sigma in sigmas
        ]
        if one.failure is not None:
            scores = [f"failed: {one.failure.splitlines()[0][:60]}", *["-"] * (len(sigmas) - 1)]
        told = one.training
        numbers = [
            _number(told, name, digits)
            for name, digits in (
                ("b", "3g"),
                ("validation_residual", "1e"),
                ("spectral_radius", "2f"),
                ("skipped", "d"),
                ("steps", ",d"),
                ("step_seconds", "2g"),
            )
        ]
        rows.append([one.run.name, _said(one.run), *scores, *numbers])
    return columns, rows


def _said(run: Run) -> str:
    return ", ".join(_as_override(key.removeprefix("model."), value) for key, value in run.changes.items())


def _number(told: Mapping[str, Any], name: str, digits: str) -> str:
    if name not in told:
        return "-"
    form = digits if digits in ("d", ",d") else f".{digits}"
    return f"{told[name]:{form}}"
