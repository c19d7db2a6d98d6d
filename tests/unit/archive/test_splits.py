import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hpcdeq.archive import Archive, open_archive
from hpcdeq.archive.splits import check_unseen, read_split, split_of, split_scenes, write_split
from hpcdeq.cli import app
from hpcdeq.config import load_train_config
from hpcdeq.errors import ConfigError
from hpcdeq.models import learnt_scenes, read_card
from hpcdeq.noise import Gaussian
from hpcdeq.studies.degrade import degrade_archive
from hpcdeq.training import train
from tests.conftest import add_scene, smooth_scene
from tests.unit.training.test_training import SMALL

runner = CliRunner()


def archive_of(path: Path, **seeds: int) -> Archive:
    archive = open_archive(path, create=True)
    for name, seed in seeds.items():
        add_scene(archive, name, smooth_scene(seed, bands=6, height=65, width=65))
    return archive


@pytest.fixture
def six(tmp_path: Path) -> Archive:
    return archive_of(tmp_path / "six.zarr", a=1, b=2, c=3, d=4, e=5, f=6)


def test_a_drawn_split_has_every_scene_in_one_part_and_is_the_same_every_time(six: Archive) -> None:
    split = split_scenes(six.scenes(), val=1, test=2, seed=0)
    assert [len(split.parts[part]) for part in ("train", "val", "test")] == [3, 1, 2]
    assert sorted(name for part in split.parts.values() for name in part) == list(six)
    assert split == split_scenes(six.scenes()[::-1], val=1, test=2, seed=0)
    others = {frozenset(split_scenes(six.scenes(), 1, 2, seed).parts["test"]) for seed in range(20)}
    assert len(others) > 5


def test_no_scene_is_left_to_learn_from(six: Archive) -> None:
    with pytest.raises(
        ConfigError, match="of 6 scenes 3 to validate and 3 to test on leave none to learn from"
    ):
        split_scenes(six.scenes(), val=3, test=3, seed=0)


def test_a_scene_under_another_name_cannot_be_in_two_parts(six: Archive, tmp_path: Path) -> None:
    other = archive_of(tmp_path / "other.zarr", new=7, renamed=2)
    with pytest.raises(ConfigError, match=r"1 scenes are in two parts.*b of train is renamed of test"):
        split_of({"train": six.scenes(), "test": other.scenes()})


def test_a_copy_with_noise_of_an_ingested_scene_is_the_same_scene(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", smooth_scene(1, bands=6, height=65, width=65))
    assert (
        runner.invoke(
            app, ["ingest", str(tmp_path / "raw.npy"), "--archive", str(tmp_path / "a.zarr")]
        ).exit_code
        == 0
    )
    clean = open_archive(tmp_path / "a.zarr")
    degrade_archive(clean, tmp_path / "noisy.zarr", Gaussian(sigma=50.0), seed=0)
    noisy = open_archive(tmp_path / "noisy.zarr")
    assert clean["raw"].content_sha256 != noisy["raw"].content_sha256
    with pytest.raises(ConfigError, match="raw of train is raw of test"):
        split_of({"train": clean.scenes(), "test": noisy.scenes()})


def test_a_split_file_gives_back_the_split_and_takes_its_scenes(six: Archive, tmp_path: Path) -> None:
    split = split_scenes(six.scenes(), val=1, test=2, seed=0)
    write_split(split, tmp_path / "s.json")
    assert read_split(tmp_path / "s.json") == split
    assert [s.name for s in split.take(six, "test")] == list(split.parts["test"])
    name = next(iter(split.parts["test"]))
    same_names = archive_of(tmp_path / "others.zarr", **{n: i + 10 for i, n in enumerate(six)})
    with pytest.raises(ConfigError, match=f"not those that the split was made of.*{name}"):
        split.take(same_names, "test")
    with pytest.raises(ConfigError, match=f"of the split's part 'test' are not in .*{name}"):
        split.take(archive_of(tmp_path / "none.zarr", z=1), "test")
    with pytest.raises(ConfigError, match="no scenes to validate on"):
        split_scenes(six.scenes(), val=0, test=2, seed=0).take(six, "val")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "x", "version": 1}', '{"parts": 3}'])
def test_what_is_no_split_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(ConfigError, match=r"s\.json"):
        read_split(tmp_path / "s.json")


def test_a_split_file_that_was_edited_into_a_leak_is_refused(six: Archive, tmp_path: Path) -> None:
    write_split(split_scenes(six.scenes(), val=1, test=2, seed=0), tmp_path / "s.json")
    content = json.loads((tmp_path / "s.json").read_text())
    name, identities = next(iter(content["parts"]["test"].items()))
    content["parts"]["train"]["other"] = identities
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=f"other of train is {name} of test"):
        read_split(tmp_path / "s.json")


def test_a_model_knows_what_it_was_learnt_from_through_all_that_it_began_with(
    six: Archive, tmp_path: Path
) -> None:
    """A model from another model, which was trained on other scenes: neither may be tested on."""
    write_split(split_scenes(six.scenes(), val=1, test=2, seed=0), tmp_path / "s.json")
    split = read_split(tmp_path / "s.json")
    first = train(
        load_train_config(
            None,
            [
                f"data.train={six.path}",
                f"data.split={tmp_path / 's.json'}",
                f"run={tmp_path / 'one'}",
                *SMALL,
            ],
        )
    )
    learnt = learnt_scenes(read_card(first)["provenance"])
    assert learnt == {name: sorted(found) for name, found in split.parts["train"].items()}
    check_unseen(split.take(six, "test"), learnt, "it")
    other = archive_of(tmp_path / "other.zarr", g=7, h=8)
    settings = [f"data.train={other.path}", f"run={tmp_path / 'two'}", f"training.start_from={first}", *SMALL]
    second = train(load_train_config(None, settings))
    seen = learnt_scenes(read_card(second)["provenance"])
    assert set(seen) == {*split.parts["train"], "h"}, "g was held out to validate on"
    renamed = archive_of(tmp_path / "renamed.zarr", fine=20, x=8)
    with pytest.raises(ConfigError, match=r"it was learnt from 1 of the 2 scenes.*x \(as h\)"):
        check_unseen(renamed.scenes(), seen, "it")
    for model in (first, second):
        ran = runner.invoke(app, ["evaluate", str(six.path), "--model", str(model), "--sigma", "50"])
        assert isinstance(ran.exception, ConfigError)
        assert "was learnt from 3 of the 6 scenes" in str(ran.exception)
    ran = runner.invoke(
        app,
        [
            "evaluate",
            str(six.path),
            "--model",
            str(first),
            "--sigma",
            "50",
            "--split",
            str(tmp_path / "s.json"),
            "--json",
        ],
    )
    assert ran.exit_code == 0, ran.output
    assert [row["scene"] for row in json.loads(ran.stdout)["scenes"]] == list(split.parts["test"])


def test_the_command_makes_a_split(six: Archive, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    ran = runner.invoke(app, ["split", str(six.path), "--val", "1", "--test", "2", "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.strip() == "train: 3, val: 1, test: 2"
    assert read_split(out) == split_scenes(six.scenes(), val=1, test=2, seed=0)
    other = archive_of(tmp_path / "other.zarr", g=7)
    ran = runner.invoke(
        app, ["split", "--train", str(six.path), "--test", str(other.path), "--out", str(out)]
    )
    assert ran.exit_code == 0, ran.output
    assert list(read_split(out).parts["test"]) == ["g"]
    for wrong in (
        ["split"],
        ["split", str(six.path), "--train", str(six.path)],
        ["split", str(six.path), "--val", "x"],
    ):
        assert isinstance(runner.invoke(app, [*wrong, "--out", str(out)]).exception, ConfigError)
