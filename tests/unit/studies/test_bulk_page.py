"""The page of a bulk run: what it shows is true, and it needs nothing but itself."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from hpcdeq.archive import Archive, Scene
from hpcdeq.cli import app
from hpcdeq.errors import MissingExtraError
from hpcdeq.inference import DenoiseSettings, denoise_share, plan, plan_archive
from hpcdeq.inference.ledger import Ledger
from hpcdeq.inference.status import SceneStatus, status_of
from hpcdeq.models import save_model
from hpcdeq.solvers import Anderson
from hpcdeq.studies import bulk_page, page
from hpcdeq.studies.bulk_page import MAX_PANELS, BulkPage
from hpcdeq.tiling import Window, cells_along
from tests.conftest import add_scene, smooth_scene
from tests.unit.inference.test_denoise import small_model

SETTINGS = DenoiseSettings(device="cpu", overlap=0)
GREEN, ORANGE, GREY = (0, 158, 115), (230, 159, 0), (148, 156, 168)
runner = CliRunner()


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.ScenePlan, "unit_shape", property(lambda scene: scene.shard_shape))


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    save_model(small_model(solver=Anderson(iterations=4, tolerance=0.15)), tmp_path / "model", {})
    return tmp_path / "model"


@pytest.fixture
def planned(archive: Archive, model_folder: Path, tmp_path: Path) -> Path:
    """An output archive of which nothing is computed yet: scenes of 2, 1 and 1 units."""
    plan_archive(archive, model_folder, tmp_path / "out.zarr", SETTINGS)
    return tmp_path / "out.zarr"


@dataclass
class Read(HTMLParser):
    """What a browser would find on a page."""

    text: str
    cells: list[dict[str, str]] = field(default_factory=list)
    """Attributes of the cells of the grid."""
    images: dict[str, dict[str, str]] = field(default_factory=dict)
    """Addresses by what they show, by scene."""
    tags: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    words: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._in_grid, self._scene = False, ""
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: Sequence[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.tags.append(tag)
        self.links += [values[name] for name in ("href", "src") if name in values]
        if self._in_grid and "data-facts" in values:
            self.cells.append(values)
        self._in_grid |= values.get("class") == "grid"
        if tag == "section":
            self._scene = values["id"]
            self.images[self._scene] = {}
        if tag == "img":
            self.images[self._scene][values["alt"]] = values["src"]

    def handle_data(self, data: str) -> None:
        self.words += data

    def of(self, name: str) -> dict[str, NDArray[np.uint8]]:
        """Pictures of a scene, by what they show."""
        (cell,) = (cell for cell in self.cells if cell["data-facts"].split("\n")[0] == name)
        images = self.images[cell["href"].removeprefix("#")]
        contents = {title: base64.b64decode(uri.split(",")[1]) for title, uri in images.items()}
        return {title: np.asarray(Image.open(io.BytesIO(found))) for title, found in contents.items()}


def page_of(out: Path) -> Read:
    file = out.with_name("page.html")
    BulkPage(out, file).write(status_of(out))
    return Read(file.read_text())


def test_there_is_a_cell_for_each_scene_coloured_by_its_state(archive: Archive, planned: Path) -> None:
    assert [cell["class"] for cell in page_of(planned).cells] == ["pending"] * 3
    denoise_share(planned, 0, 2)
    add_scene(archive, "scene1", smooth_scene(9, 7, 70, 90))  # it has changed since it was planned
    denoise_share(planned, 2, 3)
    read = page_of(planned)
    assert [cell["data-facts"].split("\n")[0] for cell in read.cells] == ["scene0", "scene1", "scene2"]
    assert [cell["class"] for cell in read.cells] == ["running", "failed", "loose"]
    assert read.cells[0]["style"] == "--share: 50%"
    assert "has changed since" in read.cells[1]["data-facts"]
    assert "tiles did not converge, worst residual" in read.cells[2]["data-facts"]
    assert "1 / 3" in read.words


def test_the_page_needs_nothing_but_itself(planned: Path) -> None:
    denoise_share(planned)
    read = page_of(planned)
    assert read.links
    assert all(link.startswith(("#scene", "data:image/")) for link in read.links)
    assert not {"script", "link", "iframe"} & set(read.tags)
    assert "url(" not in read.text
    assert "@import" not in read.text


def test_what_the_ledger_says_is_text_and_never_markup(planned: Path) -> None:
    hostile = "\"><script>alert(1)</script> & <b>'x"
    ledger = Ledger(Archive(planned))
    ledger.fail("scene1", hostile)
    ledger.fail("<i>'\"&", "unplanned")
    read = page_of(planned)
    assert "script" not in read.tags
    assert {cell["data-facts"].split("\n")[0] for cell in read.cells} == {
        "scene0",
        "scene1",
        "scene2",
        "<i>'\"&",
    }
    assert hostile in next(cell["data-facts"] for cell in read.cells if "scene1" in cell["data-facts"])
    assert read.words.count(hostile) == 2  # in the list of what failed, and beside the pictures


def test_each_tile_has_its_colour_on_the_map(planned: Path) -> None:
    denoise_share(planned)
    stored = zarr.open_group(planned / "scene0", mode="r")["tile_converged"][...]
    assert 0 < stored.sum() < stored.size
    drawn = page_of(planned).of("scene0")["tiles"]
    rows, columns = cells_along(400, 24, 0), cells_along(140, 24, 0)
    for i, (y0, y1) in enumerate(rows.values()):
        for j, (x0, x1) in enumerate(columns.values()):
            pixel = drawn[int((y0 + y1) / 2 / 400 * len(drawn)), int((x0 + x1) / 2 / 140 * drawn.shape[1])]
            assert tuple(pixel) == (GREEN if stored[i, j] else ORANGE)


def test_the_pictures_show_the_worst_tile_before_and_after(archive: Archive, planned: Path) -> None:
    denoise_share(planned)
    read = page_of(planned)
    stored = zarr.open_group(planned / "scene0", mode="r")
    residual = np.where(stored["tile_converged"][...] == 0, stored["tile_residual"][...], -1)
    row, _ = np.unravel_index(np.argmax(residual), residual.shape)
    middle = stored["tile_y"][row] + 12
    y0 = int(max(0, min(middle - 195 // 2, 400 - 195)) // 65 * 65)
    pictures = read.of("scene0")
    assert f"top: {100 * y0 / 400}%" in read.text
    assert pictures["before"].shape == pictures["after"].shape == (195, 140, 3)
    for title, folder in (("before", archive.path), ("after", planned)):
        pixels = Scene(folder / "scene0").read(Window(y0, y0 + 195, 0, 140))
        white = np.quantile(Scene(planned / "scene0").read(Window(y0, y0 + 195, 0, 140))[[5, 3, 1]], 0.995)
        red = 255 * np.clip(pixels[5] / white, 0, 1) ** (1 / 2.2)  # 650 nm is nearest to 640
        assert np.abs(pictures[title][..., 0] - red).mean() < 6  # JPEG


def test_units_of_a_failed_scene_that_are_there_are_green(archive: Archive, planned: Path) -> None:
    ledger = Ledger(Archive(planned))
    denoise_share(planned, 0, 2)
    ledger.fail("scene0", "for a test")
    drawn = page_of(planned).of("scene0")["units"]
    assert tuple(drawn[0, 0]) == GREEN
    assert tuple(drawn[-1, 0]) == GREY
    assert abs((drawn[:, 0] == GREEN).all(axis=1).mean() - 260 / 400) < 0.01


def test_lost_pixels_are_said_to_be_lost_and_not_shown_black(planned: Path) -> None:
    denoise_share(planned)
    shutil.rmtree(planned / "scene0" / "radiance" / "c")
    read = page_of(planned)
    assert set(read.of("scene0")) == {"before", "tiles"}
    assert "cannot read rows" in read.words
    assert "No such file" in read.words


@pytest.mark.parametrize("lost", ["input", "output", "map"])
def test_a_page_is_made_whatever_is_gone(archive: Archive, planned: Path, lost: str) -> None:
    denoise_share(planned)
    status = status_of(planned)
    shutil.rmtree({"input": archive.path, "output": planned, "map": planned / "scene1/tile_converged"}[lost])
    BulkPage(planned, planned.with_name("page.html")).write(status)
    left = {"input": {"after", "tiles"}, "output": {"before"}, "map": {"before", "after"}}[lost]
    assert set(Read(planned.with_name("page.html").read_text()).of("scene1")) == left


def test_of_many_bands_less_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def windows(bands: int) -> Window:
        scene = Scene.__new__(Scene)
        monkeypatch.setattr(Scene, "shape", (bands, 4000, 3000))
        return bulk_page._part(scene, Window(0, 60, 2940, 3000))

    assert windows(31) == Window(0, 195, 2795, 2990)
    assert windows(800) == Window(0, 130, 2860, 2990)
    assert windows(16384) == Window(0, 65, 2925, 2990)


def test_pictures_are_read_again_only_of_scenes_that_changed(
    archive: Archive, planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = Scene.read

    def spy(self: Scene, window: Window | None = None) -> NDArray[np.float32]:
        assert window is not None
        assert window.height <= 195
        assert window.width <= 195
        read.append(self.name)
        return real(self, window)

    denoise_share(planned, 1, 2)
    done = status_of(planned).names("done")
    assert 0 < len(done) < 3
    written = BulkPage(planned, planned.with_name("page.html"))
    with monkeypatch.context() as patch:
        patch.setattr(Scene, "read", spy)
        written.write(status_of(planned))
        assert sorted(read) == sorted(done * 2)
        read.clear()
        written.write(status_of(planned))
        assert read == []
    denoise_share(planned)
    monkeypatch.setattr(Scene, "read", spy)
    written.write(status_of(planned))
    assert sorted(read) == sorted(2 * [name for name in archive if name not in done])


def test_nothing_but_the_page_is_written(planned: Path) -> None:
    denoise_share(planned)
    file = planned.with_name("pages") / "run.html"
    before = {path: path.stat().st_mtime_ns for path in planned.parent.rglob("*")}
    done = runner.invoke(app, ["status", str(planned), "--html", str(file)])
    assert done.exit_code == 0, done.exception
    after = {path: path.stat().st_mtime_ns for path in planned.parent.rglob("*")}
    assert after.keys() - before.keys() == {file.parent, file}
    assert {path: after[path] for path in before} == before
    assert done.stdout.startswith("3 scenes: 3 done")


def test_failed_scenes_and_those_that_converged_worst_are_shown_first() -> None:
    fine = SceneStatus(
        name="", state="done", pixels=1, units=1, finished=1, tiles=100, converged=100, worst=0.1
    )
    loose = [replace(fine, name=f"l{i}", converged=99 - i) for i in range(30)]
    failed = [replace(fine, name=f"f{i}", state="failed", tiles=None, converged=None) for i in range(30)]
    running = replace(fine, name="r", state="running", tiles=None, converged=None)
    good = [replace(fine, name=f"g{i}") for i in range(30)]
    shown = bulk_page._worth_showing([running, *good, *loose, *failed])
    names = [f"f{i}" for i in range(12)] + [f"l{i}" for i in range(29, 17, -1)]
    assert [scene.name for scene in shown] == names
    assert len(shown) == MAX_PANELS
    few = bulk_page._worth_showing([running, *good, loose[0], failed[0]])
    assert [scene.name for scene in few] == ["f0", "l0", *(f"g{i}" for i in range(22))]


def test_without_the_library_it_says_what_to_install(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    done = runner.invoke(app, ["status", str(planned), "--html", str(planned.with_name("page.html"))])
    assert isinstance(done.exception, MissingExtraError)
    assert 'pip install "hpcdeq[report]"' in str(done.exception)
    assert done.stdout == ""
