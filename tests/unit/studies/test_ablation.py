"""Ablations: what a study's file may say, that a run is done once, and what the table says of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hpcdeq.archive import Archive, open_archive
from hpcdeq.cli import app
from hpcdeq.errors import ConfigError, PartialFailureError
from hpcdeq.models import load_model
from hpcdeq.studies import ablation
from hpcdeq.studies.ablation import Scoring, carry_out, chosen, outcomes, read_study
from hpcdeq.studies.evaluation import compare_model, means
from tests.conftest import add_scene, smooth_scene

STUDY = {
    "about": "What b does",
    "settings": {
        "noise.sigma": 50,
        "model.block": 16,
        "model.prior": {"layers": 2, "filters": 4},
        "model.support.size": 3,
        "model.solver.iterations": 4,
        "model.adjoint.solver.iterations": 4,
        "dictionary": {"atoms": 20, "sparsity": 2, "iterations": 2},
        "data.batch": 2,
        "data.val_blocks": 2,
        "training.pretrain_steps": 3,
        "training.steps": 2,
        "training.log_every": 1,
        "training.support_sizes": [],
        "training.largest_residual": 10,
    },
    "runs": {
        "prior": {"model.map": "prior", "training.steps": 0},
        "base": {"after": "prior"},
        "b-5": {"after": "prior", "model.b": 5.0},
        "alone": {"model.prior": {"layers": 3, "filters": 4}},
    },
}
SIGMAS = [30.0, 50.0]


@pytest.fixture
def held_out(tmp_path: Path) -> Archive:
    found = open_archive(tmp_path / "val.zarr", create=True)
    add_scene(found, "other", smooth_scene(9, 7, 40, 44))
    return found


def write(folder: Path, content: object) -> Path:
    path = folder / "study.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def words(archive: Archive, held_out: Archive) -> list[str]:
    return [f"data.train={archive.path}", f"data.val={held_out.path}"]


def test_runs_are_trained_scored_and_shown_once(
    archive: Archive, held_out: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ["ablate", str(write(tmp_path, STUDY)), *words(archive, held_out), "--out", str(out)]
    command += ["--sigma", "30,50"]
    first = CliRunner().invoke(app, command, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    assert load_model(out / "base/model").settings.b == 20.0
    assert load_model(out / "b-5/model").settings.b == 5.0
    rows = {(row["run"], row["sigma"]): row for row in csv.DictReader((out / "ablation.csv").open())}
    assert set(rows) == {(run, sigma) for run in STUDY["runs"] for sigma in ("30", "50")}  # type: ignore[attr-defined]
    told = means([f.row for f in compare_model(held_out, load_model(out / "b-5/model"), SIGMAS)])  # type: ignore[union-attr]
    for row in told:
        assert float(rows["b-5", f"{row.sigma:g}"]["psnr"]) == row.denoised.psnr
    assert rows["b-5", "30"]["changes"] == "b=5.0"
    assert rows["b-5", "30"]["steps"] == "2"
    assert "| b-5 | b=5.0 |" in (out / "ablation.md").read_text()

    def never(*_: object) -> None:
        raise AssertionError("it is done")

    monkeypatch.setattr(ablation, "train", never)
    monkeypatch.setattr(ablation, "compare_model", never)
    again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert again.stdout == first.stdout


def test_other_noise_is_scored_without_training_again(
    archive: Archive, held_out: Archive, tmp_path: Path
) -> None:
    _, runs = read_study(write(tmp_path, STUDY), tmp_path / "out", words(archive, held_out))
    base = chosen(runs, ["base"])
    carry_out(base, Scoring(held_out, SIGMAS))
    model = tmp_path / "out/base/model/model.json"
    written = model.stat().st_mtime_ns
    for scoring in (Scoring(held_out, SIGMAS, seed=1), Scoring(held_out, [70.0])):
        carry_out(base, scoring)
        _, found = outcomes(base, scoring)
        assert set(found.scores) == {f"{sigma:g}" for sigma in scoring.sigmas}
    assert model.stat().st_mtime_ns == written
    _, longer = read_study(
        write(tmp_path, STUDY), tmp_path / "out", [*words(archive, held_out), "training.steps=4"]
    )
    carry_out(chosen(longer, ["base"]), Scoring(held_out, SIGMAS))
    assert json.loads(model.read_text())["provenance"]["config"]["training"]["steps"] == 4


def test_a_run_that_fails_is_named_and_the_others_are_done(
    archive: Archive, held_out: Archive, tmp_path: Path
) -> None:
    content = json.loads(json.dumps(STUDY))
    content["runs"] = {"wide": {"model.support.size": 30}, "after-it": {"after": "wide"}} | content["runs"]
    _, runs = read_study(write(tmp_path, content), tmp_path / "out", words(archive, held_out))
    runs = chosen(runs, ["after-it", "prior"])
    scoring = Scoring(held_out, SIGMAS)
    with pytest.raises(
        PartialFailureError, match=r"2 of 3 runs failed: wide: model: support\.size must be below"
    ):
        carry_out(runs, scoring)
    found = {one.run.name: one for one in outcomes(runs, scoring)}
    assert found["prior"].scores
    assert found["prior"].failure is None
    assert "support.size" in (found["wide"].failure or "")
    assert "has no model" in (found["after-it"].failure or "")
    assert "failed: model: support.size" in ablation.as_text("", list(found.values()), SIGMAS)


def test_those_that_a_run_begins_with_are_chosen_with_it(
    archive: Archive, held_out: Archive, tmp_path: Path
) -> None:
    _, runs = read_study(write(tmp_path, STUDY), tmp_path / "out", words(archive, held_out))
    assert [run.name for run in chosen(runs, ["b-5"])] == ["prior", "b-5"]
    assert [run.name for run in chosen(runs, [])] == list(STUDY["runs"])  # type: ignore[call-overload]
    assert runs[2].config.training.start_from == tmp_path / "out/prior/model"
    assert runs[2].config.training.pretrain_steps == 0
    with pytest.raises(ConfigError, match=r"no run 'bass'; did you mean 'base'\?"):
        chosen(runs, ["bass"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("runs: [", "cannot read the study"),
        ({"about": "x"}, "runs: Field required"),
        ({"about": "x", "runs": {}}, "runs: Dictionary should have at least 1 item"),
        ({"about": "x", "runs": {"a": {}}, "sets": {}}, "sets: Extra inputs"),
        (
            {"about": "x", "runs": {"a": {"after": "b"}}},
            "run a comes after 'b', which must be a run above it",
        ),
        ({"about": "x", "runs": {"a": {"model.bb": 1}}}, "run a: model.bb: unknown key; did you mean 'b'"),
        ({"about": "x", "runs": {"a": {"config": "none.yaml"}}}, "run a: cannot read the config file"),
    ],
)
def test_a_wrong_file_is_explained(content: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        read_study(write(tmp_path, content), tmp_path / "out", ["data.train=a.zarr"])


@pytest.mark.parametrize("file", sorted(Path("configs/studies").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_studies_here_can_be_read(file: Path, tmp_path: Path) -> None:
    about, runs = read_study(file, tmp_path, ["data.train=a.zarr"])
    assert about
    assert len(runs) > 1
