"""Comparisons of methods: what a cell is, that it is computed once, and what the tables say of it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hpcdeq.archive import Archive, open_archive
from hpcdeq.cli import app
from hpcdeq.cluster.signals import stop_requests
from hpcdeq.errors import ConfigError, MissingExtraError, PartialFailureError, PreemptedError
from hpcdeq.inference import DenoiseSettings, denoise_array
from hpcdeq.metrics import evaluate_all
from hpcdeq.models import Qrnn3dSettings, SparseDenoiser, load_model, save_model
from hpcdeq.noise import Gaussian
from hpcdeq.solvers import Unrolled
from hpcdeq.studies import cells, classical, public_tools, tables
from hpcdeq.studies.cells import Comparison, Store, compute
from hpcdeq.studies.degrade import noisy_copy
from hpcdeq.studies.method import Method
from hpcdeq.studies.methods import choose, for_sigma
from hpcdeq.studies.protocols import PROTOCOLS, Protocol
from hpcdeq.studies.study import Study, StudyRequest
from hpcdeq.studies.trained import title_of
from tests.conftest import add_scene, smooth_scene
from tests.unit.inference.test_denoise import small_model

runner = CliRunner()
WHOLE = PROTOCOLS["hpcdeq"]


def scaled(factor: float, key: str = "scaled", calls: list[str] | None = None) -> Method:
    """A stand-in for a denoiser: its input, nearer to zero."""

    def denoise(noisy: np.ndarray, sigma: float) -> np.ndarray:
        if calls is not None:
            calls.append(key)
        return np.float32(factor) * noisy

    return Method(
        key=key,
        title=key,
        tables=frozenset({1}),
        source="",
        denoiser=lambda protocol: denoise,
        identity={"factor": factor},
    )


@pytest.fixture
def clean(tmp_path: Path) -> Archive:
    archive = open_archive(tmp_path / "clean.zarr", create=True)
    for seed in (1, 2):
        add_scene(archive, f"scene_{seed}", smooth_scene(seed, 7, 70, 66))
    return archive


def comparison(archive: Archive, *chosen: Method, protocol: Protocol = WHOLE) -> Comparison:
    return Comparison(
        methods=chosen, scenes=archive.scenes(), sigmas=(30.0, 50.0), seeds=(0, 1), protocol=protocol
    )


def run(of: Comparison, store: Store, worker: int = 0, workers: int = 1) -> dict[str, str]:
    with stop_requests() as stop:
        return compute(of.cells(), store, stop, "cells", worker, workers)


def test_a_cell_is_the_score_of_the_method_on_the_noise_that_evaluate_adds(
    clean: Archive, tmp_path: Path
) -> None:
    store, of = Store(tmp_path / "cells"), comparison(clean, scaled(0.9))
    assert run(of, store) == {}
    assert len(of.cells()) == 8
    for cell in of.cells():
        noisy = noisy_copy(cell.scene, Gaussian(sigma=cell.sigma), cell.seed)
        found = store.get(cell)
        assert found is not None
        assert found.scores == evaluate_all(cell.scene.read(), np.float32(0.9) * noisy)
        look = store.look(cell)
        assert look is not None
        assert look.colours.shape == (70, 66, 3)
        at = tuple(look.points[0])
        assert np.array_equal(look.spectra[0], np.float32(0.9) * noisy[:, *at])
        error = np.abs(np.float32(0.9) * noisy - cell.scene.read()).mean(axis=0) / (0.5 * cell.sigma / 255)
        assert np.abs(look.error / 255.0 - np.clip(error, 0, 1)).max() < 1 / 255


def test_a_cell_that_is_known_is_not_computed_again(clean: Archive, tmp_path: Path) -> None:
    calls: list[str] = []
    store = Store(tmp_path / "cells")
    run(comparison(clean, scaled(0.9, "a", calls)), store)
    run(comparison(clean, scaled(0.9, "a", calls), scaled(0.8, "b", calls)), store)
    assert calls == ["a"] * 8 + ["b"] * 8
    run(comparison(clean, scaled(0.7, "a", calls)), store)  # with other settings it is another one
    assert calls[16:] == ["a"] * 8
    clean.remove("scene_1")
    add_scene(clean, "scene_1", smooth_scene(9, 7, 70, 66))
    run(comparison(clean, scaled(0.7, "a", calls)), store)
    assert calls[24:] == ["a"] * 4, "the pixels of one scene are others"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"scores": {}}'])
def test_a_damaged_cell_is_computed_again(clean: Archive, tmp_path: Path, damage: bytes) -> None:
    calls: list[str] = []
    store, of = Store(tmp_path / "cells"), comparison(clean, scaled(0.9, "a", calls))
    run(of, store)
    next(iter((tmp_path / "cells").glob("*.json"))).write_bytes(damage)
    run(of, store)
    assert len(calls) == 9


def test_a_run_that_is_stopped_goes_on_with_what_is_missing(
    clean: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    calls: list[str] = []
    store, of = Store(tmp_path / "cells"), comparison(clean, scaled(0.9, "a", calls))
    original = Store.put

    def put(self: Store, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Store, "put", put)
    with pytest.raises(PreemptedError, match="3 of 8 cells are known"):
        run(of, store)
    run(of, store)
    assert len(calls) == 8


@pytest.mark.parametrize("workers", [2, 3, 20])
def test_workers_share_the_cells(clean: Archive, tmp_path: Path, workers: int) -> None:
    calls: list[str] = []
    of = comparison(clean, scaled(0.9, "a", calls), scaled(0.8, "b", calls))
    for worker in range(workers):
        run(of, Store(tmp_path / "shared"), worker, workers)
    assert sorted(calls) == ["a"] * 8 + ["b"] * 8, "each once"
    run(of, Store(tmp_path / "alone"))
    for cell in of.cells():
        shared, alone = Store(tmp_path / "shared").get(cell), Store(tmp_path / "alone").get(cell)
        assert shared is not None
        assert alone is not None
        assert shared.scores == alone.scores


def test_what_fails_is_named_and_the_others_are_kept(clean: Archive, tmp_path: Path) -> None:
    def broken(noisy: np.ndarray, sigma: float) -> np.ndarray:
        raise ValueError("no memory of how this works")

    store = Store(tmp_path / "cells")
    bad = replace(scaled(1.0, "bad"), denoiser=lambda protocol: broken)
    failed = run(comparison(clean, bad, scaled(0.9)), store)
    assert len(failed) == 4  # by scene and sigma
    assert failed["bad on scene_1 at sigma 30"] == "ValueError: no memory of how this works"
    told = tables.gather(comparison(clean, bad, scaled(0.9)), store, [])
    assert told.missing == 8
    assert "8 cells are not known" in tables.as_text(told)


def test_the_noisy_row_agrees_with_theory(tmp_path: Path) -> None:
    """-20 log10(sigma / 255), to 0.01 dB: whatever else is seen has scaled or clipped something."""
    archive = open_archive(tmp_path / "a.zarr", create=True)
    add_scene(archive, "scene", smooth_scene(1, 31, 400, 400))
    (noisy,) = choose(["noisy"], [], None, archive.scenes(), "cpu")
    of = replace(comparison(archive, noisy), sigmas=(30.0, 50.0, 70.0), seeds=(0,))
    run(of, Store(tmp_path / "cells"))
    (table, _) = tables.gather(of, Store(tmp_path / "cells"), []).quality
    for sigma, values in table.lines[0].at.items():
        assert abs(values["psnr"].mean + 20 * math.log10(sigma / 255)) < 0.01


def test_mean_and_spread_are_over_scenes_and_seeds(clean: Archive, tmp_path: Path) -> None:
    store, of = Store(tmp_path / "cells"), comparison(clean, scaled(0.9), scaled(1.0, "noisy"))
    run(of, store)
    found = tables.gather(of, store, [])
    for line in found.quality[0].lines:
        for sigma in (30.0, 50.0):
            scores = [
                store.get(cell).scores.psnr  # type: ignore[union-attr]
                for cell in of.cells()
                if cell.method.key == line.method.key and cell.sigma == sigma
            ]
            value = line.at[sigma]["psnr"]
            assert len(scores) == value.count == 4
            assert math.isclose(value.mean, np.mean(scores))
            assert math.isclose(value.spread, np.std(scores, ddof=1))
    rows = list(csv.DictReader(io.StringIO(tables.as_csv(found))))
    (row,) = [
        r
        for r in rows
        if (r["method"], r["sigma"], r["metric"], r["from"]) == ("scaled", "50", "psnr", "measured")
    ]
    assert float(row["mean"]) == found.quality[0].lines[0].at[50.0]["psnr"].mean
    assert {r["from"] for r in rows} == {"measured", "the paper, ICVL", "the paper, hardware not named"}
    plain = json.loads(json.dumps(tables.as_json_values(found)))
    assert plain["tables"][0]["rows"][0]["sigma"]["50"]["psnr"]["count"] == 4
    assert plain["paper"]["tables"]["2"]["TDL"][0] == [40.58, 0.957, 0.062]
    latex = tables.as_latex(found)
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3
    line = next(line for line in latex.splitlines() if line.startswith("scaled &"))
    assert line.count(r"\textbf") == 8, "best of all columns, as only the noisy input is beside it"
    for line in latex.splitlines():  # as many cells as columns
        if line.endswith(r"\\") and line.startswith(("scaled", "noisy", "Lasso")):
            assert line.count("&") in (8, 9)


def test_a_row_with_a_cell_missing_has_no_mean(clean: Archive, tmp_path: Path) -> None:
    store, of = Store(tmp_path / "cells"), comparison(clean, scaled(0.9))
    run(of, store)
    (tmp_path / "cells" / f"{of.cells()[0].name}.json").unlink()
    found = tables.gather(of, store, [])
    assert found.missing == 1
    assert list(found.quality[0].lines[0].at) == [50.0], "30 lacks a scene"


def saved(folder: Path, sigma: object = 50.0, **changes: object) -> Path:
    model = small_model(**changes)  # type: ignore[arg-type]
    card = {
        "config": {
            "noise": {"kind": "gaussian", "sigma": sigma},
            "training": {"pretrain_steps": 3, "steps": 5, "start_from": None},
            "data": {"batch": 2},
            "model": {"map": model.settings.map, "block": model.settings.block},
        },
        "scenes": {},
    }
    save_model(model, folder, card)
    return folder


@pytest.mark.parametrize("protocol", ["hpcdeq", "paper"])
def test_a_model_is_applied_as_the_protocol_says(clean: Archive, tmp_path: Path, protocol: str) -> None:
    folder = saved(tmp_path / "m")
    (method,) = choose([], [folder], None, clean.scenes(), "cpu")
    noisy = noisy_copy(clean["scene_1"], Gaussian(sigma=50.0), 0)
    found = method.denoiser(PROTOCOLS[protocol])(noisy, 50 / 255)
    model = load_model(folder)
    if protocol == "paper":
        model.settings = replace(model.settings, block=60)
        expected = denoise_array(model, noisy, DenoiseSettings(overlap=0, device="cpu"))
    else:
        expected = denoise_array(model, noisy, DenoiseSettings(device="cpu"))
    assert np.array_equal(found, expected)


def test_the_middle_is_cut_out_and_stretched_before_noise_is_added(clean: Archive) -> None:
    protocol = Protocol(name="x", about="", crop=40, stretch=True)
    case = protocol.case(clean["scene_1"], 50.0, 0)
    middle = clean["scene_1"].read()[:, 15:55, 13:53]
    assert case.clean.shape == (7, 40, 40)
    assert (case.clean.min(), case.clean.max()) == (0.0, 1.0)
    assert np.allclose(case.clean, (middle - middle.min()) / (middle.max() - middle.min()), atol=1e-6)
    assert abs(float(np.std(case.noisy - case.clean)) - 50 / 255) < 0.005
    with pytest.raises(Exception, match="protocol qrnn3d scores the middle 512 x 512"):
        PROTOCOLS["qrnn3d"].case(clean["scene_1"], 50.0, 0)


def test_masked_pixels_are_no_part_of_a_score(tmp_path: Path) -> None:
    archive = open_archive(tmp_path / "a.zarr", create=True)
    valid = np.ones((70, 66), bool)
    valid[:20] = False
    add_scene(archive, "scene", smooth_scene(1, 7, 70, 66) * valid, valid)
    case = WHOLE.case(archive["scene"], 50.0, 0)
    assert np.all(case.noisy[:, ~valid] == 0)
    of = replace(comparison(archive, scaled(0.9)), sigmas=(50.0,), seeds=(0,))
    run(of, Store(tmp_path / "cells"))
    found = Store(tmp_path / "cells").get(of.cells()[0])
    assert found is not None
    assert found.scores == evaluate_all(case.clean, np.float32(0.9) * case.noisy, valid)


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"map": "fast"}, "DEQ-fast"),
        ({"map": "full"}, "DEQ-full"),
        ({"map": "fast", "adjoint": Unrolled()}, "DU-fast"),
        ({"map": "full", "adjoint": Unrolled()}, "DU-full"),
        ({"map": "prior"}, "the prior alone"),
        ({"map": "fast", "prior": Qrnn3dSettings(kind="qrnn3d", filters=4)}, "DEQ-fast, prior qrnn3d"),
    ],
)
def test_models_are_named_after_what_they_are(changes: dict[str, object], title: str) -> None:
    model: SparseDenoiser = small_model(**changes)  # type: ignore[arg-type]
    assert title_of(model.settings) == title


def test_of_models_for_several_levels_the_nearest_is_taken(clean: Archive, tmp_path: Path) -> None:
    folders = [saved(tmp_path / str(i), sigma) for i, sigma in enumerate((30.0, 70.0, [10.0, 60.0]))]
    chosen = choose([], folders, None, clean.scenes(), "cpu")
    assert [for_sigma(chosen, s)[0].sigmas for s in (20.0, 30.0, 50.0, 65.0, 75.0)] == [
        (10.0, 60.0),
        (30.0, 30.0),
        (10.0, 60.0),
        (70.0, 70.0),  # as far as 60, and made for fewer levels
        (70.0, 70.0),
    ]
    with pytest.raises(ConfigError, match="two models are the row DEQ-fast for the same noise"):
        choose([], [*folders, saved(tmp_path / "again", 30.0)], None, clean.scenes(), "cpu")


def test_what_is_asked_for_must_be_there(clean: Archive) -> None:
    scenes = clean.scenes()
    with pytest.raises(ConfigError, match="there is no 'lass'; did you mean 'lasso'"):
        choose(["lass"], [], None, scenes, "cpu")
    with pytest.raises(ConfigError, match="omp, lasso need a dictionary: give --dictionary"):
        choose(["omp", "lasso"], [], None, scenes, "cpu")
    with pytest.raises(ConfigError, match="there is no 'papr'; did you mean 'paper'"):
        Study(StudyRequest(archive=str(clean.path), out="x", protocol="papr"))


@pytest.fixture
def _short_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcdeq.studies.study.BLOCKS", (20, 40))
    monkeypatch.setattr("hpcdeq.studies.study.ITERATIONS", (1, 5))
    monkeypatch.setattr("hpcdeq.studies.runtime.EDGE", 70)


def test_a_single_method_has_tables_and_pictures_too(clean: Archive, tmp_path: Path) -> None:
    words = ["--archive", str(clean.path), "--out", str(tmp_path / "study"), "--sigma", "50"]
    ran = runner.invoke(app, ["tables", *words, "--methods", "tdl"])
    assert ran.exit_code == 0, ran.output
    assert "TDL" in ran.stdout
    assert (tmp_path / "study/figures/errors.svg").is_file()


@pytest.mark.usefixtures("_short_figures")
def test_the_commands_write_tables_figures_and_one_report(clean: Archive, tmp_path: Path) -> None:
    folders = [saved(tmp_path / "deq"), saved(tmp_path / "prior", map="prior")]
    out = tmp_path / "study"
    asked = [
        "--archive",
        str(clean.path),
        "--out",
        str(out),
        "--sigma",
        "30,50",
        "--methods",
        "noisy,omp,fast-tv",
    ]
    asked += [word for folder in folders for word in ("--model", str(folder))]
    ran = runner.invoke(app, ["tables", *asked, "--runtime"])
    assert ran.exit_code == 0, ran.output
    for row in ("batch-OMP", "fast-TV", "DEQ-fast", "the prior alone", "70 x 70 x 7, blocks of 24"):
        assert row in ran.stdout
    assert {p.name for p in out.iterdir()} == {
        *("cells", "figures", "runtimes", "report.html"),
        *(f"tables.{kind}" for kind in ("txt", "csv", "json", "tex")),
    }
    assert (out / "tables.txt").read_text() == ran.stdout
    known = {p: p.stat().st_mtime_ns for p in (out / "cells").iterdir()}

    ran = runner.invoke(app, ["figures", *asked])
    assert ran.exit_code == 0, ran.output
    drawn = {p.name for p in (out / "figures").iterdir()}
    assert drawn == {
        f"{name}.{kind}"
        for name in ("blocks", "iterations", "parameters", "spectra", "errors")
        for kind in ("png", "svg")
    }
    assert all(p.stat().st_mtime_ns == time for p, time in known.items()), (
        "cells that were known are as they were"
    )
    assert len(list((out / "cells").glob("*.json"))) == len(known) // 2 + 2 * 4, (
        "DEQ-fast: 2 blocks, 2 iterations, 2 scenes"
    )
    page = (out / "report.html").read_text()
    for text in (
        "Table I: sparse coding",
        "Table III",
        "the paper",
        "sigma 50",
        "learnt numbers",
        "<svg",
        "data:image",
    ):
        assert text in page or text == "<svg"
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_comparison_that_is_not_whole_is_written_all_the_same(
    clean: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Callable[..., object]:
        raise ValueError("broken")

    monkeypatch.setattr(classical, "_in_blocks", broken)
    out = tmp_path / "study"
    folder = saved(tmp_path / "deq")
    ran = runner.invoke(
        app,
        [
            "tables",
            "--archive",
            str(clean.path),
            "--out",
            str(out),
            "--sigma",
            "50",
            "--methods",
            "noisy,omp",
            "--model",
            str(folder),
        ],
    )
    assert isinstance(ran.exception, PartialFailureError)
    assert "2 cells could not be computed" in str(ran.exception)
    assert "DEQ-fast" in (out / "tables.txt").read_text()
    assert "2 cells are not known" in (out / "report.html").read_text()
    assert (
        json.loads(next(iter((out / "cells").glob("*.json"))).read_text())["key"]["version"] == cells.VERSION
    )


def test_a_tool_that_is_not_installed_is_named_with_its_extra(
    clean: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_tools, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"bm4d.*hpcdeq\[peers\]"):
        choose(["noisy", "bm4d"], [], None, clean.scenes(), "cpu")
    assert [m.key for m in choose(["noisy"], [], None, clean.scenes(), "cpu")] == ["noisy"]
