"""The models that come along: they load, are small, say what they learnt from, and denoise scenes of 31 bands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hpcdeq.archive import open_archive
from hpcdeq.cli import app
from hpcdeq.errors import ModelFileError
from hpcdeq.inference import denoise_array
from hpcdeq.metrics import mpsnr
from hpcdeq.models import learnt_scenes, load_model, read_card, save_model
from hpcdeq.weights import find, names
from tests.conftest import add_scene, smooth_scene
from tests.unit.inference.test_denoise import small_model

FOUR = ["deq-fast", "deq-full", "du-fast", "du-full"]
MAX_BYTES = 4_000_000


def test_the_four_models_come_along() -> None:
    assert names() == FOUR


@pytest.mark.parametrize("name", FOUR)
def test_each_is_small_and_says_what_it_learnt_from(name: str) -> None:
    folder = find(Path(name))
    assert sum(file.stat().st_size for file in folder.iterdir()) < MAX_BYTES
    card = read_card(Path(name))
    assert card["bands"] == 31
    provenance = card["provenance"]
    assert len(learnt_scenes(provenance)) == 12
    assert not {"jelly_beans_ms", "paints_ms"} & set(learnt_scenes(provenance))
    assert provenance["skipped_steps"] == 0, "no step of a training that ships was not finite"
    assert provenance["config"]["data"]["train"] == "train.zarr", (
        "a path of the machine it was made on tells nobody anything"
    )


@pytest.mark.parametrize("name", FOUR)
def test_each_denoises_a_scene_it_has_not_seen(name: str) -> None:
    clean = 0.6 * smooth_scene(5, 31, 60, 60)
    for sigma, least in ((30, 6.0), (70, 8.0)):
        noise = np.random.default_rng(sigma).normal(0, sigma / 255, clean.shape)
        noisy = clean + noise.astype(np.float32)
        gain = mpsnr(clean, denoise_array(load_model(Path(name)), noisy)) - mpsnr(clean, noisy)
        assert gain > least, f"sigma {sigma}: {gain:.2f} dB"


def test_a_model_is_found_by_its_name_unless_a_folder_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = load_model("du-fast")
    assert shipped.bands == 31
    save_model(small_model(), tmp_path / "du-fast", {})
    assert load_model("du-fast").bands == small_model().bands
    with pytest.raises(ModelFileError, match="or one that comes along: deq-fast, deq-full, du-fast, du-full"):
        load_model("du-fats")


def test_verbs_take_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    archive = open_archive(tmp_path / "scenes.zarr", create=True)
    add_scene(archive, "one", smooth_scene(1, 31, 30, 34))
    runner = CliRunner()
    made = runner.invoke(app, ["denoise", "scenes.zarr", "--model", "du-fast", "--out", "out.zarr"])
    assert made.exit_code == 0, made.output
    scored = runner.invoke(app, ["evaluate", "scenes.zarr", "--model", "du-fast", "--sigma", "50", "--json"])
    assert scored.exit_code == 0, scored.output
    usual = json.loads(scored.stdout)["mean"][0]
    assert usual["sigma"] == 50
    once = ["--iterations", "1", "--tolerance", "0", "--overlap", "0"]
    scored = runner.invoke(
        app, ["evaluate", "scenes.zarr", "--model", "du-fast", "--sigma", "50", "--json", *once]
    )
    assert scored.exit_code == 0, scored.output
    told = json.loads(scored.stdout)
    assert told["mean"][0]["denoised"]["psnr"] < usual["denoised"]["psnr"]
    assert told["settings"]["iterations"] == 1
    tables = [
        "tables",
        "--archive",
        "scenes.zarr",
        "--model",
        "du-fast",
        "--methods",
        "noisy",
        "--sigma",
        "50",
    ]
    compared = runner.invoke(app, [*tables, "--out", "study"])
    assert compared.exit_code == 0, compared.output


def test_a_model_that_comes_along_may_be_gone_on_with(tmp_path: Path) -> None:
    archive = open_archive(tmp_path / "scenes.zarr", create=True)
    for i in range(2):
        add_scene(archive, f"scene{i}", smooth_scene(i, 31, 30, 34))
    settings = read_card(Path("du-fast"))["settings"]
    words = [f"data.train={archive.path}", f"run={tmp_path / 'run'}", "training.start_from=du-fast"]
    words += [
        "training.pretrain_steps=0",
        "training.steps=1",
        "data.batch=1",
        "data.val_blocks=1",
        "training.support_sizes=[]",
    ]
    config = tmp_path / "model.yaml"
    config.write_text(json.dumps({"model": settings}))
    tuned = CliRunner().invoke(app, ["train", "--config", str(config), *words])
    assert tuned.exit_code == 0, tuned.output
    card = read_card(tmp_path / "run/model")
    assert len(learnt_scenes(card["provenance"])) == 14 - 1, "its scenes too, of which one was held out"
    assert card["provenance"]["wavelengths"] == archive["scene0"].wavelengths.tolist()
