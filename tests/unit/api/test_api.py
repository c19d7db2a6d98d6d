"""What ``import hpcdeq`` offers, used as in a notebook."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray
from typer.testing import CliRunner

import hpcdeq
from hpcdeq.archive import Archive
from hpcdeq.archive import open_archive as open_stored
from hpcdeq.cli import app
from hpcdeq.errors import ArchiveNotFoundError, ConfigError, ModelFileError, SceneError
from hpcdeq.models import save_model
from hpcdeq.solvers import Anderson
from hpcdeq.tiling import Window
from tests.conftest import add_scene, smooth_scene
from tests.unit.inference.test_denoise import small_model

NM = np.linspace(400.0, 700.0, 7)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of 7 bands from 400 to 700 nm, trained for weak noise."""
    provenance = {"config": {"noise": {"sigma_range": [0, 70]}}, "wavelengths": NM.tolist()}
    save_model(small_model(solver=Anderson(tolerance=1e-3, iterations=3)), tmp_path / "model", provenance)
    return tmp_path / "model"


@pytest.fixture
def scenes(tmp_path: Path) -> Archive:
    """Scenes of 7 bands: of several shards, of one with pixels that hold no data."""
    archive = open_stored(tmp_path / "noisy.zarr", create=True)
    add_scene(archive, "large", noisy_scene(0, 330, 30))
    valid = np.ones((70, 90), bool)
    valid[20:35, 40:] = False
    add_scene(archive, "masked", np.where(valid, noisy_scene(1, 70, 90), 0), valid)
    return archive


def noisy_scene(seed: int, height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.1, (7, height, width)).astype(np.float32)
    return np.clip(smooth_scene(seed, 7, height, width) + noise, 0, 1)


def array(values: np.ndarray | None = None, **coords: object) -> xarray.DataArray:
    values = noisy_scene(2, 30, 40) if values is None else values
    coordinates = {"wavelength": ("band", NM, {"units": "nm"}), **coords}
    return xarray.DataArray(values, dims=("band", "y", "x"), coords=coordinates, name="reflectance")


def python(program: str) -> str:
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return run.stdout


def test_importing_it_is_quick_and_needs_nothing_heavy() -> None:
    program = (
        "import json, sys, time; begin = time.perf_counter(); import hpcdeq; seconds = time.perf_counter() - begin; "
        "print(json.dumps([seconds, dir(hpcdeq), sorted(sys.modules)]))"
    )
    told = [json.loads(python(program)) for _ in range(3)]
    assert min(seconds for seconds, _, _ in told) < 0.5
    _, names, modules = told[0]
    assert {"open_archive", "load_model", "denoise"} <= set(names)
    assert not {"torch", "numpy", "xarray", "zarr"} & set(modules)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'hpcdeq' has no attribute 'denose'"):
        hpcdeq.denose  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.slow
def test_types_are_seen_through_the_lazy_door(tmp_path: Path) -> None:
    program = tmp_path / "user.py"
    program.write_text(
        "import hpcdeq\nreveal_type(hpcdeq.denoise)\nhpcdeq.denoise(1, model=2)\nhpcdeq.denose\n"
        "hpcdeq.open_archive('a')['b'].radiance\n"
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", str(program)]
    told = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3]).stdout
    assert "-> xarray.core.dataset.Dataset" in told
    assert 'Argument "model" to "denoise" has incompatible type "int"' in told
    assert 'Module has no attribute "denose"' in told
    assert told.count("error:") == 3, told


def test_an_archive_is_a_collection_of_scenes_by_name(scenes: Archive) -> None:
    opened = hpcdeq.open_archive(scenes.path)
    assert list(opened) == ["large", "masked"]
    assert len(opened) == 2
    assert "masked" in opened
    assert "another" not in opened
    assert "large, masked" in repr(opened)
    with pytest.raises(ArchiveNotFoundError, match=r"no scene 'another' in .*; it holds: large, masked"):
        opened["another"]
    with pytest.raises(ArchiveNotFoundError, match=r"no archive at .*hpcdeq ingest"):
        hpcdeq.open_archive(scenes.path / "nowhere")


def test_a_scene_is_what_xarray_makes_of_it_but_without_the_stored_forms(scenes: Archive) -> None:
    for name in scenes:
        mine, bare = (
            hpcdeq.open_archive(scenes.path)[name],
            xarray.open_zarr(scenes.path / name, consolidated=False),
        )
        assert mine.radiance.dims == ("band", "y", "x")
        assert mine.radiance.dtype == np.float32
        np.testing.assert_array_equal(mine.radiance.values, scenes[name].read())
        np.testing.assert_allclose(mine.radiance.values, bare.radiance.values, rtol=1e-6)  # a float64 product
        np.testing.assert_array_equal(mine.wavelength.values, NM)
        assert "shard_checksum" not in mine
    assert mine.valid_mask.dtype == bool
    np.testing.assert_array_equal(mine.valid_mask.values, scenes["masked"].valid_mask())
    assert set(mine.coords) == {"wavelength", "valid_mask"}


def test_only_the_shards_that_are_needed_are_read_and_a_lost_one_is_no_zeros(scenes: Archive) -> None:
    scene = hpcdeq.open_archive(scenes.path)["large"]
    *_, last = scenes["large"].shards()
    scenes["large"].shard_path(last).unlink()
    assert last.y0 > 200
    upper = scenes["large"].read(Window(0, 100, 0, 30))
    np.testing.assert_array_equal(scene.radiance.isel(y=slice(0, 100)).values, upper)
    with pytest.raises(SceneError, match="scene large: cannot read"):
        scene.radiance.values  # noqa: B018


def test_a_scene_can_be_saved_as_netcdf(scenes: Archive, tmp_path: Path, model: Path) -> None:
    scene = hpcdeq.open_archive(scenes.path)["masked"]
    for name, dataset in (("scene", scene), ("denoised", hpcdeq.denoise(scene, model, device="cpu"))):
        dataset.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        with xarray.open_dataset(tmp_path / f"{name}.nc", engine="h5netcdf") as back:
            xarray.testing.assert_equal(back.load(), dataset)


@pytest.mark.parametrize("overlap", [None, 5])
def test_the_numbers_are_those_of_the_command_line(scenes: Archive, model: Path, overlap: int | None) -> None:
    out = scenes.path.with_name("denoised.zarr")
    words = [] if overlap is None else ["--overlap", str(overlap)]
    command = [
        "denoise",
        str(scenes.path),
        "--model",
        str(model),
        "--out",
        str(out),
        "--device",
        "cpu",
        *words,
    ]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    loaded, noisy, by_command = (
        hpcdeq.load_model(model),
        hpcdeq.open_archive(scenes.path),
        hpcdeq.open_archive(out),
    )
    for name in noisy:
        denoised = hpcdeq.denoise(noisy[name], loaded, overlap=overlap, device="cpu")
        expected = by_command[name]
        assert denoised.radiance.values.tobytes() == expected.radiance.values.tobytes()
        for found in (
            "noise_sigma",
            "tile_y",
            "tile_x",
            "tile_residual",
            "tile_iterations",
            "tile_converged",
        ):
            np.testing.assert_array_equal(denoised[found].values, expected[found].values, err_msg=found)
            assert denoised[found].dtype == expected[found].dtype
            assert denoised[found].dims == expected[found].dims
        assert set(denoised.variables) == set(expected.variables)


def test_the_shipped_models_give_the_numbers_of_the_command_line(tmp_path: Path) -> None:
    archive = open_stored(tmp_path / "noisy.zarr", create=True)
    values = np.random.default_rng(0).normal(smooth_scene(3, 31, 30, 34), 0.1).clip(0, 1).astype(np.float32)
    add_scene(archive, "scene", values)
    for name in ("deq-fast", "du-full"):
        out = tmp_path / f"{name}.zarr"
        command = ["denoise", str(archive.path), "--model", name, "--out", str(out), "--device", "cpu"]
        made = CliRunner().invoke(app, command)
        assert made.exit_code == 0, made.output
        denoised = hpcdeq.denoise(hpcdeq.open_archive(archive.path)["scene"], name, device="cpu")
        expected = hpcdeq.open_archive(out)["scene"].radiance
        assert denoised.radiance.values.tobytes() == expected.values.tobytes()


def test_every_form_of_a_scene_is_the_same_scene(scenes: Archive, model: Path) -> None:
    wanted = hpcdeq.denoise(hpcdeq.open_archive(scenes.path)["large"], model).radiance.values
    folder = scenes.path / "large"
    plain = scenes["large"].read()
    decoded = xarray.open_zarr(folder, consolidated=False)  # in float64
    np.testing.assert_allclose(hpcdeq.denoise(decoded, model).radiance.values, wanted, atol=1e-4)
    forms = {
        "numpy": plain,
        "float64": plain.astype(np.float64),
        "stored integers": xarray.open_zarr(folder, consolidated=False, mask_and_scale=False).radiance,
        "other order": array(plain).transpose("x", "band", "y"),
    }
    for name, form in forms.items():
        denoised = hpcdeq.denoise(form, model).radiance
        np.testing.assert_array_equal(denoised.transpose("band", "y", "x").values, wanted, err_msg=name)
        assert denoised.dtype == np.float32


def test_axes_coordinates_and_attributes_are_kept(model: Path) -> None:
    given = array(y=np.arange(30.0)[::-1], time=3).assign_attrs(sensor="one").transpose("y", "x", "band")
    denoised = hpcdeq.denoise(given, model)
    radiance = denoised.radiance
    assert radiance.dims == ("y", "x", "band")
    assert radiance.attrs == {"sensor": "one"}
    assert set(given.coords) <= set(radiance.coords)
    np.testing.assert_array_equal(radiance.y, given.y)
    assert denoised.attrs["denoised_with"].startswith("model, weights ")
    assert (given - radiance).shape == given.shape
    whole = hpcdeq.denoise((given * 1000).astype(np.int16).assign_attrs(scale_factor=1e-3), model).radiance
    assert "scale_factor" not in whole.attrs
    assert abs(whole - radiance).mean() < 1e-3


def test_pixels_without_data_may_be_nan_if_they_are_marked(model: Path) -> None:
    given = array()
    given[:, 3:9, 5] = np.nan
    with pytest.raises(SceneError, match=r"42 of 8400 values are NaN .*assign_coords\(valid_mask="):
        hpcdeq.denoise(given, model)
    marked = given.assign_coords(valid_mask=np.isfinite(given).all("band"))
    denoised = hpcdeq.denoise(marked, model).radiance
    assert (denoised.values[:, 3:9, 5] == 0).all()
    np.testing.assert_array_equal(denoised.valid_mask, marked.valid_mask)
    assert np.isnan(given.values[:, 3:9, 5]).all(), "what is given is not changed"


@pytest.mark.parametrize(
    ("given", "about"),
    [
        (
            np.zeros((8, 30, 40), np.float32),
            "8 bands, but the model model knows 7; train one for this sensor",
        ),
        (np.zeros((30, 40, 7), np.float32), r"30 bands, .* knows 7; is band its last axis\? numpy.moveaxis"),
        (np.zeros((30, 40), np.float32), r"a scene is \(band, y, x\), got an array of shape \(30, 40\)"),
        (np.zeros((7, 0, 40), np.float32), "the scene is empty: {'band': 7, 'y': 0, 'x': 40}"),
        (np.zeros((7, 3, 4), complex), "a scene holds integers or floats, got complex128"),
        (
            np.array([[[4095]]] * 7, np.uint16),
            r"uint16 from 4095 to 4095, .* such as scene / 4095, or set .*scale_factor",
        ),
        (array().rename(y="lat", x="lon"), r"got \('band', 'lat', 'lon'\); rename .* to y, x: scene.rename"),
        (array().swap_dims(band="wavelength"), r"scene.swap_dims\(wavelength='band'\)"),
        (array().expand_dims("time"), r"choose one scene of 3 dims, such as scene.isel\(time=0\)"),
        (array().isel(x=0), "a scene has the dims band, y and x"),
        (array().to_dataset(name="other"), "no variable 'radiance'; give one of its arrays: other"),
        (array().assign_attrs(add_offset=3), "attribute 'add_offset', which is not applied"),
        (
            array(wavelength=("band", NM + 60)),
            "band 1 is at 460 nm, but the model model was trained on 400 nm there",
        ),
        (array(wavelength=("band", NM / 100, {"units": "um"})), "band 7 is at 7000 nm"),
    ],
)
def test_what_is_wrong_with_a_scene_is_said_in_one_line(
    model: Path, given: np.ndarray | xarray.DataArray | xarray.Dataset, about: str
) -> None:
    with pytest.raises(SceneError, match=about) as told:
        hpcdeq.denoise(given, model)
    assert "\n" not in str(told.value)


def test_advice_on_a_scene_helps(model: Path) -> None:
    wanted = hpcdeq.denoise(array(), model).radiance.values
    shifted = array(wavelength=("band", NM + 60))
    for taken in (
        shifted.drop_vars("wavelength"),
        array().swap_dims(band="wavelength").swap_dims(wavelength="band"),
        array().rename(y="lat", x="lon").rename(lat="y", lon="x"),
        np.moveaxis(np.moveaxis(array().values, 0, -1), -1, 0),
        array(wavelength=("band", NM + 10)),
        array(wavelength=("band", NM / 1000, {"units": "um"})),
        array(wavelength=("band", NM, {"units": "furlong"})),
    ):
        np.testing.assert_array_equal(hpcdeq.denoise(taken, model).radiance.values, wanted)


def test_a_wrong_model_or_option_is_said(model: Path) -> None:
    with pytest.raises(ModelFileError, match="or one that comes along: deq-fast, deq-full, du-fast, du-full"):
        hpcdeq.load_model("du-fats")
    with pytest.raises(ConfigError, match="overlap must be below the model's block of 24 pixels, got 24"):
        hpcdeq.denoise(array(), model, overlap=24)
    with pytest.raises(ConfigError, match="device: 'gpu' is not one of"):
        hpcdeq.denoise(array(), model, device="gpu")


def test_values_outside_of_0_to_1_and_unknown_noise_are_told(model: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hpcdeq.denoise(array(), model)
        dark = np.random.default_rng(0).normal(0.05, 70 / 255, (7, 60, 60))
        hpcdeq.denoise(dark, model)  # half of it below 0, as noise does
    with pytest.warns(
        UserWarning, match=r"are outside of \[0, 1\], from 0 to 4095: .* such as scene / 4095"
    ) as told:
        hpcdeq.denoise(array(4095 * noisy_scene(2, 30, 40)), model)
    assert len(told) == 1
    assert told[0].filename == __file__
    loud = np.random.default_rng(0).normal(0.5, 120 / 255, (7, 60, 60))
    with pytest.warns(
        UserWarning, match="its noise is about 1[12].*/255, and the model was trained for 0 to 70"
    ):
        hpcdeq.denoise(loud, model)


def test_a_model_tells_what_it_is() -> None:
    model = hpcdeq.load_model("du-fast")
    assert (model.name, model.bands, model.sigma_range) == ("du-fast", 31, (0, 70))
    assert "31 bands from 400 to 700 nm" in repr(model)
    assert not model.network.training


def test_a_bar_is_shown_unless_it_is_not_wanted(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpcdeq.console._LOG_SECONDS", 0.0)
    hpcdeq.denoise(array(), model)
    assert "denoise: 4/4" in capsys.readouterr().err
    hpcdeq.denoise(array(), model, progress=False)
    assert capsys.readouterr().err == ""


def test_codes_and_all_else_beside_the_pixels_of_a_denoised_scene_are_there(
    scenes: Archive, model: Path
) -> None:
    out = scenes.path.with_name("codes.zarr")
    command = ["denoise", str(scenes.path), "--model", str(model), "--out", str(out), "--codes"]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    scene = hpcdeq.open_archive(out)["masked"]
    assert scene.codes.dims == ("code", "y", "x")
    assert scene.support.dims == ("tile_y", "tile_x", "code")
    assert json.loads(scene.attrs["denoised_with"])["precision"] == "float32"
    np.testing.assert_array_equal(scene.codes.values, open_stored(out)["masked"].codes())
