"""One test a threat, named after it. docs/security.md lists these, and those that lie with what they are about."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
import re
import resource
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import scipy.io
import torch
from numcodecs import zstd
from typer.testing import CliRunner

from hpcdeq.archive import Archive, Scene, open_archive
from hpcdeq.archive.ingest import IngestOptions, Outcome, ingest
from hpcdeq.archive.scene import checksum_of
from hpcdeq.archive.splits import read_split
from hpcdeq.cli import app
from hpcdeq.cluster.request import job_request
from hpcdeq.config import load_train_config
from hpcdeq.errors import ArchiveError, ConfigError, ModelFileError, SceneError, TrainingError
from hpcdeq.inference import DenoiseSettings, plan_archive
from hpcdeq.inference.ledger import Ledger
from hpcdeq.models import load_model, save_model
from hpcdeq.studies.ablation import read_study
from hpcdeq.studies.page import render_page
from hpcdeq.training import checkpoints
from tests.unit.inference.test_denoise import small_model

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hpcdeq"
OUTSIDE = ["..", "../x", "a/../../x", "/etc/passwd", "a/b", ".hidden", "a..b", "", "a\0b", "a\nb", "x" * 201]


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def calls() -> list[tuple[str, ast.Call]]:
    """Every call in the package, with the name that is called."""
    trees = [ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")]
    found = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), node) for node in found]


def imported() -> set[str]:
    """Every module that is imported anywhere in the package."""
    names = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


# Pickles


def test_a_checkpoint_with_a_pickle_in_it_runs_no_code(tmp_path: Path) -> None:
    attempt = checkpoints.take_over(tmp_path / "checkpoints", {})
    checkpoints.commit(attempt, "1-00-00000005", {"step": 5})
    folder = tmp_path / "checkpoints/1-00-00000005"
    torch.save({"step": Evil(tmp_path / "ran")}, folder / "state.pt")
    sums = {"state.pt": checksum_of(folder / "state.pt")}
    (folder / "manifest.json").write_text(json.dumps({"checksums": sums}))
    with pytest.raises(TrainingError, match="1-00-00000005 cannot be read, though it is as it was written"):
        checkpoints.load(folder)
    assert not (tmp_path / "ran").exists()


def test_torch_load_is_told_everywhere_to_read_numbers_only() -> None:
    found = [node for name, node in calls() if name == "torch.load"]
    assert found
    for node in found:
        told = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert told.get("weights_only") == "True"
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "torch>=2.6" in needs, "below it, that can be got round: CVE-2025-32434"


def test_checkpoints_of_deepspeed_and_of_torch_distributed_which_are_pickles_are_never_read() -> None:
    assert not [name for name in imported() if name.startswith("torch.distributed.checkpoint")]
    assert not [name for name, _ in calls() if name.endswith(("load_checkpoint", "DCP.load", "dcp.load"))]


def test_nothing_else_that_unpickles_is_used() -> None:
    assert not imported() & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert not [name for name, _ in calls() if name in ("eval", "exec", "os.system", "scipy.io.readsav")]


def test_a_model_whose_weights_are_a_pickle_runs_no_code(tmp_path: Path) -> None:
    save_model(small_model(), tmp_path / "m", {})
    for write in (lambda evil: pickle.dumps(evil), lambda evil: _saved_by_torch(evil, tmp_path)):
        content = write(Evil(tmp_path / "ran"))
        (tmp_path / "m/model.safetensors").write_bytes(content)
        card = json.loads((tmp_path / "m/model.json").read_text())
        card["weights_sha256"] = hashlib.sha256(content).hexdigest()
        (tmp_path / "m/model.json").write_text(json.dumps(card))
        with pytest.raises(ModelFileError, match=r"model\.safetensors does not hold the weights"):
            load_model(tmp_path / "m")
        assert not (tmp_path / "ran").exists()


def _saved_by_torch(evil: Evil, folder: Path) -> bytes:
    torch.save({"dictionary": evil}, folder / "pickle.pt")
    return (folder / "pickle.pt").read_bytes()


# Names that lead elsewhere


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_name_of_a_scene_leads_to_no_other_folder(name: str, archive: Archive, tmp_path: Path) -> None:
    header = archive["scene0"].header()
    for use in (
        lambda: archive[name],
        lambda: archive.draft(name, header),
        lambda: archive.remove(name),
        lambda: archive.shared_path(name, "f"),
    ):
        with pytest.raises(SceneError, match="cannot name a scene"):
            use()
    parts = {"format": "hpcdeq-split", "version": 1, "parts": {"train": {name: ["x"]}}}
    (tmp_path / "s.json").write_text(json.dumps(parts))
    with pytest.raises(ConfigError, match=r"s\.json"):
        read_split(tmp_path / "s.json")


@pytest.mark.parametrize("place", ["name", "fingerprint"])
def test_a_plan_that_names_a_folder_outside_of_its_ledger_removes_nothing(
    archive: Archive, tmp_path: Path, place: str
) -> None:
    save_model(small_model(), tmp_path / "m", {})
    plan_archive(archive, tmp_path / "m", tmp_path / "out.zarr", DenoiseSettings())
    precious = tmp_path / "precious"
    precious.mkdir()
    ledger = Ledger(Archive(tmp_path / "out.zarr"))
    good = ledger.job()
    file = ledger.folder / "job.json"
    told = json.loads(file.read_text())
    to = "../../precious" if place == "name" else "../../../precious"
    told["scenes"][0][["name", "fingerprint"].index(place)] = to
    (ledger.folder / "units" / told["scenes"][0][0]).mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(told))
    ledger.begin(good)
    assert precious.is_dir()
    file.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"job\.json is damaged"):
        ledger.job()


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", ".x", ""])
def test_the_name_of_a_run_of_a_study_leads_to_no_other_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(json.dumps({"about": "x", "runs": {name: {}}}))
    with pytest.raises(ConfigError, match=r"study\.yaml: .* cannot name a run"):
        read_study(tmp_path / "study.yaml", tmp_path / "out", ["data.train=a.zarr"])


def test_a_manifest_that_names_a_file_elsewhere_is_damaged(tmp_path: Path) -> None:
    attempt = checkpoints.take_over(tmp_path / "checkpoints", {})
    checkpoints.commit(attempt, "1-00-00000005", {"step": 5})
    manifest = tmp_path / "checkpoints/1-00-00000005/manifest.json"
    (tmp_path / "secret").write_text("x")
    sums = {"state.pt": 1, "../../secret": checksum_of(tmp_path / "secret")}
    manifest.write_text(json.dumps({"checksums": dict(reversed(sums.items()))}))
    with pytest.raises(TrainingError, match=r"lists \.\./\.\./secret, which is outside of it"):
        checkpoints.load(manifest.parent)


def test_the_name_of_an_array_in_an_npz_leads_to_no_other_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "cube.npy", np.random.default_rng(0).uniform(0.1, 1, (3, 20, 30)).astype(np.float32))
    (tmp_path / "raw").mkdir()
    with zipfile.ZipFile(tmp_path / "raw/s.npz", "w") as archive:
        archive.write(tmp_path / "cube.npy", "../../../escaped.npy")
    (outcome,) = ingest([tmp_path / "raw"], tmp_path / "A", IngestOptions())
    assert outcome.status == "ingested"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["A", "cube.npy", "raw"]
    assert not (tmp_path.parent / "escaped.npy").exists()


def test_a_symbolic_link_in_place_of_an_output_is_refused(archive: Archive, tmp_path: Path) -> None:
    save_model(small_model(), tmp_path / "m", {})
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for link in ("out.zarr", "out.zarr.staging", "out.zarr.ledger"):
        (tmp_path / link).symlink_to(theirs)
        with pytest.raises(ArchiveError, match=f"{link} is a link to .*theirs"):
            plan_archive(archive, tmp_path / "m", tmp_path / "out.zarr", DenoiseSettings())
        (tmp_path / link).unlink()
    assert list(theirs.iterdir()) == []


def test_a_symbolic_link_in_place_of_a_scene_being_written_is_refused(
    archive: Archive, tmp_path: Path
) -> None:
    header = archive["scene0"].header()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    archive.staging.mkdir(exist_ok=True)
    archive.shared_path("new", "f").symlink_to(theirs)
    with pytest.raises(OSError, match="new@f"):
        archive.shared_draft("new", header, "f")
    assert list(theirs.iterdir()) == []


# Metadata that lie


def _change(scene: Scene, array: str, change: Callable[[dict[str, Any]], None]) -> None:
    file = scene.path / array / "zarr.json"
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))


def _inner(told: dict[str, Any]) -> list[dict[str, Any]]:
    return told["codecs"][0]["configuration"]["codecs"]


LIES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "1.5e19 bytes": (lambda t: t.update(shape=[7, 1 << 31, 1 << 31]), "out of bounds"),
    "no pixels": (lambda t: t.update(shape=[7, 0, 90]), "out of bounds"),
    "negative": (lambda t: t.update(shape=[7, -70, 90]), "out of bounds"),
    "many bands": (lambda t: t.update(shape=[1 << 19, 70, 90]), "bands are over the bound|hold all bands"),
    "not whole": (lambda t: t.update(shape=[7, 70.5, 90]), "is no shape"),
    "no number": (lambda t: t.update(shape=[7, float("inf"), 90]), "is no shape"),
    "a huge shard": (
        lambda t: t["chunk_grid"]["configuration"].update(chunk_shape=[7, 65 << 10, 65 << 10]),
        "a shard of .* bytes is over the bound",
    ),
    "an empty shard": (
        lambda t: t["chunk_grid"]["configuration"].update(chunk_shape=[7, 0, 65]),
        "out of bounds",
    ),
    "Python objects": (lambda t: t.update(data_type="object"), "type 'object' is none of"),
    "text": (lambda t: t.update(data_type={"name": "fixed_length_utf32"}), "SceneError|TypeError|ValueError"),
    "a pickle codec": (lambda t: _inner(t)[1].update(name="numcodecs.pickle"), "not among those allowed"),
    "a codec twice": (lambda t: _inner(t).insert(1, _inner(t)[1]), "not among those allowed"),
    "an unknown codec": (lambda t: t.update(codecs=[{"name": "bytes"}, {"name": "gzip"}]), "not among those"),
    "no scale": (
        lambda t: t["attributes"].update(scale_factor=float("nan")),
        "scale_factor must be positive",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_metadata_that_lie_are_refused_before_memory_is_taken(lie: str, archive: Archive) -> None:
    change, message = LIES[lie]
    _change(archive["scene1"], "radiance", change)
    with pytest.raises(SceneError, match=f"scene scene1: .*({message})"):
        archive["scene1"]


@pytest.mark.parametrize("size", [1 << 20, 1 << 40])
def test_an_array_beside_the_pixels_cannot_claim_more_than_goes_with_them(
    archive: Archive, size: int
) -> None:
    def grow(told: dict[str, Any]) -> None:
        told["shape"] = told["chunk_grid"]["configuration"]["chunk_shape"] = [size]

    _change(archive["scene1"], "wavelength", grow)
    with pytest.raises(SceneError, match="scene scene1: cannot read wavelength"):
        _ = archive["scene1"].wavelengths


@pytest.mark.parametrize("array", ["wavelength", "radiance"])
def test_a_few_bytes_that_unpack_to_gigabytes_are_refused(archive: Archive, array: str) -> None:
    """Zstandard tells the size of what it packs; Zarr takes as much memory as that says."""
    scene = archive["scene1"]
    block = zstd.compress(bytes(1 << 27), 1)
    file = scene.path / ("wavelength/c/0" if array == "wavelength" else "radiance/c/0/0/0")
    if array == "radiance":  # without the index of a shard
        _change(scene, array, lambda t: t.update(codecs=[{"name": "bytes"}, {"name": "zstd"}]))
    file.write_bytes(block)
    assert len(block) < 20_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    again = archive["scene1"]
    with pytest.raises(SceneError, match="cannot read"):
        _ = again.wavelengths if array == "wavelength" else again.stored()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < 1 << 26


# Raw files


def _only(tmp_path: Path) -> Outcome:
    (outcome,) = ingest([tmp_path / "raw"], tmp_path / "A", IngestOptions())
    return outcome


def test_a_matlab_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    cube = np.zeros((600, 600, 100))
    scipy.io.savemat(tmp_path / "raw/s.mat", {"cube": cube}, do_compression=True)
    outcome = _only(tmp_path)
    assert outcome.status == "failed"
    assert "'cube' claims 288000000 bytes in a file of" in outcome.message


def test_a_png_with_a_second_larger_header_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "raw/s"
    folder.mkdir(parents=True)
    for band in (1, 2):
        values = np.random.default_rng(band).integers(1, 255, (20, 30)).astype(np.uint8)
        Image.fromarray(values).save(folder / f"s_{band}.png")
    content = (folder / "s_2.png").read_bytes()
    header = content[8:33]
    Image.new("L", (8000, 8000)).save(tmp_path / "large.png")
    larger = (tmp_path / "large.png").read_bytes()[8:33]
    (folder / "s_2.png").write_bytes(content[:8] + header + larger + content[33:])
    outcome = _only(tmp_path)
    assert outcome.status == "failed"
    assert "truncated or damaged band s_2.png" in outcome.message


# Configurations

_TAGS = ["!!python/object/apply:os.system ['touch {}']", "!!python/object/apply:pathlib.Path.touch ['{}']"]
_READERS: dict[str, Callable[[Path], Any]] = {
    "config": lambda file: load_train_config(file, ["data.train=a.zarr"]),
    "override": lambda file: load_train_config(
        None, ["data.train=a.zarr", f"run={file.read_text().strip()}"]
    ),
    "study": lambda file: read_study(file, file.parent / "out", ["data.train=a.zarr"]),
    "profile": lambda file: job_request({"time": "60"}, str(file)),
}


@pytest.mark.parametrize("kind", _READERS)
@pytest.mark.parametrize("tag", _TAGS)
def test_yaml_that_names_python_objects_runs_no_code(kind: str, tag: str, tmp_path: Path) -> None:
    text = tag.format(tmp_path / "ran")
    (tmp_path / "x.yaml").write_text(text if kind == "override" else f"run: {text}\n")
    with pytest.raises(ConfigError):
        _READERS[kind](tmp_path / "x.yaml")
    assert not (tmp_path / "ran").exists()


# The shell bounds the size of a command line.
_BOMBS = [(kind, bomb) for bomb in ("aliases", "depth", "size") for kind in _READERS]
_BOMBS.remove(("override", "size"))


@pytest.mark.parametrize(("kind", "bomb"), _BOMBS)
def test_yaml_that_grows_without_bound_is_refused(kind: str, bomb: str, tmp_path: Path) -> None:
    lines = ["- &a0 [x, x, x, x, x, x, x, x]"] + [
        f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)
    ]
    texts = {"aliases": "\n".join(lines), "depth": "[" * 3000, "size": "x" * (1 << 20)}
    text = f"[{texts[bomb]}" if kind == "override" and bomb == "depth" else texts[bomb]
    if (kind, bomb) == ("override", "aliases"):
        text = "[&a [x, x], *a]"
    (tmp_path / "x.yaml").write_text(text)
    told = {"aliases": "has an alias", "depth": "nested more than", "size": "larger than"}[bomb]
    with pytest.raises(ConfigError, match=told):
        _READERS[kind](tmp_path / "x.yaml")


# The network

_LISTENS = """
import sys
def refuse(event, arguments):
    if event in ("socket.bind", "socket.connect"):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(refuse)
sys.argv = ["hpcdeq", "ingest", sys.argv[1], "--archive", sys.argv[2]]
try:
    from hpcdeq.cli import main
    main()
finally:
    assert "distributed" not in sys.modules, "Dask's scheduler runs what anybody sends it"
"""


def test_ingest_listens_on_no_port_and_starts_no_scheduler_of_dask(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.random.default_rng(0).uniform(0.1, 1, (3, 20, 30)).astype(np.float32))
    words = [sys.executable, "-c", _LISTENS, str(tmp_path / "s.npy"), str(tmp_path / "A")]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr


def test_dask_distributed_is_not_used_and_nothing_binds_to_all_addresses() -> None:
    assert not [name for name in imported() if name.startswith(("distributed", "dask.distributed"))]
    assert not [file for file in PACKAGE.rglob("*.py") if "0.0.0.0" in file.read_text()]


# Pages


def test_what_a_page_is_told_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = jinja2.DictLoader({"x": "<p title='{{ name }}'>{{ name }}</p>"})
    monkeypatch.setattr(jinja2, "PackageLoader", lambda _: loader)
    assert "<script>" not in render_page("x", name="'><script>alert(1)</script>")


def test_no_template_turns_the_escaping_off() -> None:
    templates = sorted((PACKAGE / "studies/templates").iterdir())
    assert len(templates) >= 5
    for template in templates:
        text = template.read_text()
        assert not re.search(r"\|\s*safe|autoescape|<script", text), template
        for attribute in re.findall(r"(?:href|src|style|class|on\w+)=([^\"'\s>]*\{\{)", text):
            raise AssertionError(f"{template}: {attribute} stands in an attribute without quotes")
    assert not [name for name, _ in calls() if name.rpartition(".")[2] == "Markup"]


def test_a_file_whose_name_is_html_stays_text_in_the_messages_of_ingest(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    np.save(tmp_path / "raw/<script>.npy", np.ones((3, 20, 30), np.float32))
    ran = CliRunner().invoke(app, ["ingest", str(tmp_path / "raw"), "--archive", str(tmp_path / "A")])
    assert ran.exit_code != 0
    assert open_archive(tmp_path / "A").names() == []


# What is written down


def test_every_test_that_the_page_on_security_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/security.md").read_text())
    assert len(named) >= 15
    for file, test in named:
        assert re.search(rf"^(?:def {test}\(|    {test}: )", (ROOT / file).read_text(), re.MULTILINE), (
            file,
            test,
        )
