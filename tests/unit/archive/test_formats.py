"""Every format comes into the archive with exactly the values, wavelengths and scale of its file."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest
import rawfiles
import scipy.io
from PIL import Image

NM = np.array([400.0, 410.0, 420.5, 431.0, 440.0])


def stored(scene):
    return np.asarray(scene.radiance[...])


def same(scene, values):
    np.testing.assert_array_equal(stored(scene), values)
    assert stored(scene).dtype == values.dtype


def test_cave_folder_of_16_bit_pngs(raw, take):
    values = rawfiles.cube(31)
    scene = take(rawfiles.png_folder(raw / "toys_ms", values))
    same(scene, values)
    assert scene.name == "toys_ms"
    np.testing.assert_array_equal(scene.wavelengths, np.arange(400, 701, 10))
    np.testing.assert_array_equal(scene.read(), values * np.float32(1 / 65535))
    assert scene.attributes["full_scale"] == 65535
    assert scene.attributes["source"] == "toys_ms"


def test_original_cave_nesting_with_its_thumbnail(raw, hpcdeq, tmp_path):
    values = rawfiles.cube(31, 20, 20)
    folder = rawfiles.png_folder(raw / "toys_ms" / "toys_ms", values)
    (folder / "toys_RGB.bmp").write_bytes(b"BM....")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    assert ran.code == 0
    assert "ignored in toys_ms: Thumbs.db, toys_RGB.bmp" in ran.err
    assert ran.out.startswith(
        "ingested toys_ms: PNG band folder, 31 bands x 20 rows x 20 columns, uint16, 400-700 nm"
    )


def test_8_bit_pngs(raw, take):
    values = rawfiles.cube(3, dtype="uint8")
    scene = take(rawfiles.png_folder(raw / "s", values))
    same(scene, values)
    assert scene.scale_factor == pytest.approx(1 / 255)
    assert scene.wavelengths is None


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_pngs_whose_channels_agree(raw, take, channels):
    values = rawfiles.cube(3, dtype="uint8")
    pictures = np.repeat(values[..., None], channels, axis=-1)
    pictures[..., 3:] = 255
    same(take(rawfiles.png_folder(raw / "s", pictures)), values)


def test_16_bit_colour_pngs_keep_all_16_bits(raw, take):
    pytest.importorskip("rasterio")
    values = rawfiles.cube(2, 12, 9)
    (raw / "s").mkdir()
    for n, band in enumerate(values):
        opaque = np.full((*band.shape, 1), 65535)
        rawfiles.png16_colour(
            raw / "s" / f"b_{n}.png", np.concatenate([*[band[..., None]] * 3, opaque], axis=-1)
        )
    same(take(raw / "s"), values)


@pytest.mark.parametrize("block", [True, False])
def test_icvl_is_turned_to_band_row_column(raw, take, block):
    """ICVL: HDF5 sees (band, x, y); 1300 rows and 1392 columns in small."""
    values = rawfiles.cube(5, 130, 139, "float64") * 4095
    scene = take(rawfiles.matlab73(raw / "BGU_0403.mat", values, wavelengths=NM, block=block))
    same(scene, values.astype(np.float32))
    np.testing.assert_array_equal(scene.wavelengths, NM)
    assert scene.attributes["source_format"] == "MATLAB v7.3"
    assert scene.attributes["full_scale"] == values.max()
    assert scene.attributes["full_scale_from"] == "measured maximum"


def test_matlab73_axes_are_as_matlab_shows_them(raw, take):
    values = rawfiles.cube(5, 20, 30)
    path = raw / "s.mat"
    with h5py.File(path, "w") as file:  # MATLAB size (band, y, x) = (5, 20, 30)
        data = file.create_dataset("rad", data=values.transpose(2, 1, 0))
        data.attrs["MATLAB_class"] = np.bytes_("uint16")
    same(take(path, "--axes", "byx"), values)


def test_plain_hdf5_is_not_turned(raw, take):
    values = rawfiles.cube()
    with h5py.File(raw / "s.h5", "w") as file:
        file["group/cube"] = values
        file["wavelength"] = NM / 1000
        file["wavelength"].attrs["units"] = "micrometers"
        file["fwhm"] = NM / 1e5
        file["loop"] = file["group"]
    scene = take(raw / "s.h5", "--variable", "group/cube")
    same(scene, values)
    np.testing.assert_allclose(scene.wavelengths, NM, rtol=1e-15)
    np.testing.assert_allclose(scene.fwhm, NM / 100)  # no units: those of the wavelengths


def test_numbers_of_bands_are_no_wavelengths(raw, take):
    values = rawfiles.cube()
    with h5py.File(raw / "s.h5", "w") as file:
        file["cube"] = values
        file["bands"] = np.arange(1.0, 6.0)
    assert take(raw / "s.h5").wavelengths is None


@pytest.mark.parametrize(
    "dims",
    [("band", "y", "x"), ("lat", "lon", "wavelength"), ("x", "y", "bands"), ("line", "band", "sample")],
)
def test_netcdf4_dimensions_tell_the_axes(raw, take, dims):
    letters = {
        "lat": "y",
        "lon": "x",
        "line": "y",
        "sample": "x",
        "wavelength": "b",
        "bands": "b",
        "band": "b",
    }
    axes = "".join(letters.get(d, d) for d in dims)
    values = rawfiles.cube(9, 8, 7)  # the sizes tell nothing
    scene = take(rawfiles.netcdf4(raw / "s.nc", values.transpose(["byx".index(a) for a in axes]), dims))
    same(scene, values)
    assert scene.attributes["source_format"] == "NetCDF4"
    assert scene.wavelengths is None  # a dimension without coordinates holds zeros


def test_netcdf4_fill_value_and_wavelengths_of_a_group(raw, take):
    values = rawfiles.cube(dtype="float32")
    values[:, 3, 4:6] = -9999
    scene = take(rawfiles.netcdf4(raw / "s.nc", values, fill=np.float32(-9999), wavelengths=NM))
    np.testing.assert_array_equal(scene.wavelengths, NM)
    assert (~scene.valid_mask()).sum() == 2
    assert (stored(scene)[:, 3, 4:6] == 0).all()


def test_matlab5_cube_and_struct(raw, take):
    values = rawfiles.cube()
    path = rawfiles.matlab5(
        raw / "s.mat", values, wavelength=NM, Region={"a": 1}, text="hello", cell=np.array([[1, "a"]], object)
    )
    scene = take(path)
    same(scene, values)
    np.testing.assert_array_equal(scene.wavelengths, NM)


@pytest.mark.parametrize("transposed", [False, True])
def test_flattened_matlab5_runs_down_the_columns(raw, take, transposed):
    values = rawfiles.cube(6, 11, 13)
    scene = take(rawfiles.flat_matlab5(raw / "s.mat", values, transposed=transposed, maxValue=70000.0))
    same(scene, values)
    assert scene.attributes["full_scale"] == 70000
    assert scene.attributes["full_scale_from"] == "maxValue in the file"


@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32"])
def test_envi(raw, take, interleave, order, dtype):
    values = rawfiles.cube(dtype=dtype)
    same(take(rawfiles.envi(raw / "s.img", values, interleave, order, offset=37)), values)


def test_envi_header_keys(raw, take):
    values = rawfiles.cube()
    values[:, :2, :3] = 7
    values[:3, 9, 9] = 7  # not all its bands: a value, no mark
    listed = "{" + ",\n ".join(f"{w / 1000:.4f}" for w in NM) + "}"
    scene = take(
        rawfiles.envi(
            raw / "s.dat", values, Wavelength_Units="Micrometers", wavelength=listed,
            fwhm="{0.01, 0.01, 0.01, 0.01, 0.02}", reflectance_scale_factor="65000.0", data_ignore_value=7,
        )
    )  # fmt: skip
    np.testing.assert_allclose(scene.wavelengths, NM, rtol=1e-12)
    np.testing.assert_allclose(scene.fwhm, [10, 10, 10, 10, 20])
    assert scene.attributes["full_scale"] == 65000
    assert (~scene.valid_mask()).sum() == 6
    assert not scene.valid_mask()[:2, :3].any()
    values[:, :2, :3] = 0
    same(scene, values)


@pytest.mark.parametrize("given", ["s.hdr", "s.raw", "."])
def test_envi_by_header_data_or_folder_is_one_scene(raw, take, given):
    values = rawfiles.cube()
    rawfiles.envi(raw / "s.raw", values)
    same(take(raw / given), values)


def test_envi_header_named_after_the_data_file(raw, take):
    values = rawfiles.cube()
    rawfiles.envi(raw / "s.raw", values, name_header=raw / "s.raw.hdr", drop=("byte order", "header offset"))
    scene = take(raw)
    same(scene, values)
    assert scene.name == "s"


@pytest.mark.parametrize("fortran", [False, True])
def test_npy_smallest_axis_is_the_band(raw, take, fortran):
    values = rawfiles.cube()
    last = values.transpose(1, 2, 0)
    np.save(raw / "s.npy", np.asfortranarray(last) if fortran else np.ascontiguousarray(last))
    same(take(raw), values)


def test_npz_streams_its_one_array(raw, take):
    values = rawfiles.cube()
    np.savez_compressed(raw / "s.npz", hsi=values, wavelengths=NM, fwhm=NM / 100, note=np.array("text"))
    scene = take(raw)
    same(scene, values)
    np.testing.assert_array_equal(scene.wavelengths, NM)
    np.testing.assert_array_equal(scene.fwhm, NM / 100)  # small, but in nm like the wavelengths
    assert scene.attributes["source_variable"] == "hsi"


def test_geotiff(raw, take):
    rasterio = pytest.importorskip("rasterio")
    values = rawfiles.cube(dtype="int16")
    values[:, 0, 0] = -1
    place = rasterio.Affine(30, 0, 1000, 0, -30, 2000)
    scene = take(rawfiles.geotiff(raw / "s.tif", values, -1, NM, crs="EPSG:32632", transform=place))
    values[:, 0, 0] = 0
    same(scene, values)
    np.testing.assert_array_equal(scene.wavelengths, NM)
    assert not scene.valid_mask()[0, 0]
    assert scene.attributes["spatial:transform"] == [30, 0, 1000, 0, -30, 2000]
    assert "UTM zone 32N" in scene.attributes["proj:wkt2"]


def test_formats_are_told_by_content_not_ending(raw, take):
    values = rawfiles.cube()
    rawfiles.matlab73(raw / "s.dat", values)
    assert take(raw).attributes["source_format"] == "MATLAB v7.3"


@pytest.mark.parametrize(
    ("dtype", "kept"), [("int8", "int16"), ("int64", "int32"), ("uint64", "int32"), ("float16", "float32"), ("float64", "float32")]
)  # fmt: skip
def test_rare_types_are_stored_as_common_ones(raw, take, dtype, kept):
    values = rawfiles.cube(dtype=dtype)
    if dtype in ("int64", "uint64"):
        values[0, 0, 0] = 70000
    np.save(raw / "s.npy", values)
    same(take(raw), values.astype(kept))


@pytest.mark.parametrize(
    ("values", "words", "full_scale", "told"),
    [
        (rawfiles.cube(dtype="float32"), (), 1.0, "floats up to 1"),
        (rawfiles.cube(dtype="float32") * 7, (), None, "measured maximum"),
        (rawfiles.cube(), (), None, "measured maximum"),
        (rawfiles.cube(), ("--scale", "4095"), 4095.0, "--scale"),
    ],
)
def test_full_scale(raw, take, values, words, full_scale, told):
    np.save(raw / "s.npy", values)
    scene = take(raw, *words)
    assert scene.attributes["full_scale"] == (full_scale or float(values.max()))
    assert scene.attributes["full_scale_from"] == told
    assert scene.scale_factor == pytest.approx(1 / scene.attributes["full_scale"])


def test_skipped_bands(raw, take):
    values = rawfiles.cube(31, 20, 20)
    values[[0, 5, 6, 7]] = 0
    scene = take(rawfiles.png_folder(raw / "s", values), "--skip-bands", "0,5-7")
    kept = [b for b in range(31) if b not in (0, 5, 6, 7)]
    same(scene, values[kept])
    np.testing.assert_array_equal(scene.wavelengths, np.arange(400, 701, 10)[kept])


def test_skipping_bands_can_change_the_shards(raw, take):
    """500 bands have smaller shards than 490: windows must follow the bands that are stored."""
    values = rawfiles.cube(500, 66, 300, "uint8")
    np.save(raw / "s.npy", values)
    scene = take(raw, "--skip-bands", "0-9", "--axes", "byx")
    same(scene, values[10:])


@pytest.mark.parametrize("format_", ["png", "envi", "v73", "npy"])
def test_what_is_in_a_folder_is_found_at_any_depth(raw, take, format_):
    values = rawfiles.cube()
    deep = raw / "a" / "b"
    deep.mkdir(parents=True)
    {
        "png": lambda: rawfiles.png_folder(deep / "s", values),
        "envi": lambda: rawfiles.envi(deep / "s.img", values),
        "v73": lambda: rawfiles.matlab73(deep / "s.mat", values),
        "npy": lambda: np.save(deep / "s.npy", values),
    }[format_]()
    (raw / "README.txt").write_text("nothing to see")
    same(take(raw), values)


def test_xarray_and_dask_open_a_scene_as_it_is(raw, take, recwarn):
    import dask.array
    import xarray

    values = rawfiles.cube(31, 70, 300)
    values[:, 0, 0] = 1
    listed = "{" + ",".join(map(str, range(31))) + "}"
    scene = take(
        rawfiles.envi(raw / "s.img", values, data_ignore_value=1, wavelength=listed, wavelength_units="nm")
    )
    recwarn.clear()
    opened = xarray.open_zarr(scene.path, consolidated=False)
    assert opened.radiance.dims == ("band", "y", "x")
    assert "wavelength" in opened.radiance.coords
    np.testing.assert_allclose(opened.radiance.values[:, 1:, 1:], scene.read()[:, 1:, 1:], rtol=1e-6)
    np.testing.assert_array_equal(opened.valid_mask.values.astype(bool), scene.valid_mask())
    same(scene, dask.array.from_zarr(scene.path / "radiance").compute())
    assert not [str(w.message) for w in recwarn]


def test_real_cave(real_data, take, hpcdeq):
    folder = real_data / "cave" / "train" / "beads_ms"
    scene = take(folder)
    files = sorted(folder.glob("*.png"))
    same(scene, np.stack([np.asarray(Image.open(f)) for f in files]).astype(np.uint16))
    np.testing.assert_array_equal(scene.wavelengths, np.arange(400, 701, 10))
    assert "beads_ms" in hpcdeq("info", scene.path.parent).out


def test_real_flattened_matlab(real_data, raw, take):
    shutil.copy(real_data / "formats" / "mat" / "samson_1.mat", raw)
    scene = take(raw)
    flat = scipy.io.loadmat(raw / "samson_1.mat")["V"]
    assert scene.shape == (156, 95, 95)
    for row, column in ((0, 0), (94, 0), (0, 94), (17, 60)):
        np.testing.assert_array_equal(
            stored(scene)[:, row, column], flat[:, row + 95 * column].astype(np.float32)
        )


@pytest.mark.parametrize(
    ("name", "shape", "first_nm", "full_scale"),
    [
        ("corn-kernel-hyperspectral", (580, 31, 43), 366.551, None),
        ("rock-fenix", (450, 38, 23), 378.19, 65535),
    ],
)
def test_real_envi(real_data, take, name, shape, first_nm, full_scale):
    import spectral

    header = real_data / "formats" / "envi" / f"{name}.hdr"
    scene = take(header)
    assert scene.shape == shape
    assert scene.wavelengths[0] == pytest.approx(first_nm)
    if full_scale:  # SPy cannot open the other: its header tells no byte order
        assert scene.attributes["full_scale"] == full_scale
        image = spectral.envi.open(str(header))
        np.testing.assert_array_equal(stored(scene), np.asarray(image.open_memmap()).transpose(2, 0, 1))
