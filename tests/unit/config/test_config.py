from __future__ import annotations

from pathlib import Path

import pytest

from hpcdeq.config import dump_yaml, load_train_config
from hpcdeq.errors import ConfigError
from hpcdeq.solvers import Anderson, Picard

DATA = "data.train=a.zarr"


def test_the_later_wins(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("training: {steps: 5, lr: 0.01}\nmodel: {solver: {kind: picard, iterations: 7}}\n")
    config = load_train_config(file, [DATA, "training.steps=9"])
    assert (config.training.steps, config.training.lr) == (9, 0.01)
    assert config.model.solver == Picard(iterations=7)


def test_changing_the_kind_replaces_the_section() -> None:
    config = load_train_config(None, [DATA, "model.solver.kind=picard", "model.solver.damping=0.5"])
    assert config.model.solver == Picard(damping=0.5)
    assert load_train_config(None, [DATA, "model.solver.history=3"]).model.solver == Anderson(history=3)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    config = load_train_config(None, [DATA, "noise.sigma=[30,50]", "model.adjoint.kind=unrolled"])
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    assert load_train_config(tmp_path / "c.yaml", []) == config


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.solver.iteration=3", "model.solver.iteration: unknown key; did you mean 'iterations'?"),
        ("trainin.steps=3", "trainin: unknown key; did you mean 'training'?"),
        ("data.batch=x", "data.batch: Input should be a valid integer"),
        ("model.support.size=0", "model.support: support size must be at least 1, got 0"),
        ("noise.sigm=3", "noise.sigm: unknown key; did you mean 'sigma'?"),
        ("training.steps=-1", "training.steps: must be a number of steps of at least 0, or of epochs"),
        ("training.steps=3 epoch s", "such as '100 epochs' (got '3 epoch s')"),
        ("model.prior.noise_mapp=true", "model.prior.noise_mapp: unknown key; did you mean 'noise_map'?"),
        ("model.prior={kind: qrnn3d, layer: 3}", "model.prior.layer: unknown key; did you mean 'layers'?"),
        ("zzz=1", "zzz: unknown key; valid keys: run, seed, device"),
        ("steps", "'steps' is not an override; write key.sub=value"),
    ],
)
def test_a_wrong_key_or_value_is_one_clear_line(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_train_config(None, [DATA, override])
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_solver_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(ConfigError) as caught:
        load_train_config(None, [DATA, "model.solver.kind=newton"])
    assert "picard" in str(caught.value)
    assert "anderson" in str(caught.value)


def test_the_archive_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r"data[.]train is not set"):
        load_train_config(None, [])


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the config file"):
        load_train_config(tmp_path / "no.yaml", [DATA])
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="cannot read the config file"):
        load_train_config(tmp_path / "bad.yaml", [DATA])


def test_every_example_recipe_is_valid() -> None:
    configs = Path(__file__).parents[3] / "configs"
    recipes = sorted(set(configs.rglob("*.yaml")) - set(configs.glob("studies/*")))
    assert len(recipes) >= 9
    for recipe in recipes:
        load_train_config(recipe, [DATA])
