"""What is fuzzed: for each kind of file good ones to begin with, and how they are read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from hpcdeq.archive import Archive, open_archive
from hpcdeq.archive.ingest import IngestOptions
from hpcdeq.archive.ingest import _ingest_one as ingest_one
from hpcdeq.archive.readers import find, hdf5
from hpcdeq.archive.readers.base import damaged
from hpcdeq.archive.readers.hdf5_trial import touch_all
from hpcdeq.archive.scene import checksum_of
from hpcdeq.archive.splits import read_split, split_of, write_split
from hpcdeq.archive.validate import check_scene, validate
from hpcdeq.cluster.request import job_request
from hpcdeq.config import dump_yaml, load_train_config
from hpcdeq.inference import DenoiseSettings, denoise_archive, verify
from hpcdeq.inference.ledger import Ledger
from hpcdeq.inference.status import status_of
from hpcdeq.models import (
    CnnSettings,
    ModelSettings,
    SparseDenoiser,
    SupportSettings,
    load_dictionary,
    load_model,
    read_card,
    read_dictionary_card,
    save_dictionary,
    save_model,
)
from hpcdeq.solvers import Picard
from hpcdeq.studies.ablation import read_study
from hpcdeq.training import checkpoints
from tests.conftest import add_scene, smooth_scene
from tests.fuzz.contract import WATCH, BrokenContractError, expect

sys.path.append(str(Path(__file__).parents[1] / "unit" / "archive"))
import rawfiles


class Target(ABC):
    """Files of some kinds. A case is the number of its kind in a byte, and the content of the file.

    Parameters
    ----------
    folder
        Where they are written and read.
    """

    kinds: Sequence[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.seeds = [
            bytes([i]) + content for i, kind in enumerate(self.kinds) for content in self.good(kind)
        ]

    @abstractmethod
    def good(self, kind: str) -> list[bytes]:
        """Contents of sound files of a kind."""

    @abstractmethod
    def read(self, kind: str, content: bytes) -> None:
        """Write a file of a kind, and read it."""

    def run(self, case: bytes) -> None:
        """Read a case under watch.

        Raises
        ------
        BrokenContractError
            If the contract is broken.
        """
        with WATCH.over(self.folder):
            self.read(self.kinds[case[0] % len(self.kinds)], case[1:])


class Readers(Target):
    """Raw files of every format, ingested."""

    kinds = ("npy", "npz", "hdr", "mat", "h5", "mat73", "nc", "tif", "png", "png16")

    def good(self, kind: str) -> list[bytes]:
        place = self.folder / "make"
        place.mkdir()
        cube, small = rawfiles.cube(3, 8, 9), rawfiles.cube(3, 8, 9, "float32")
        path = place / f"x.{kind}"
        made = [path]
        if kind == "npy":
            np.save(path, small)
        elif kind == "npz":
            np.savez_compressed(path, cube=cube, wavelengths=np.array([400.0, 500, 600]))
        elif kind == "hdr":
            told = {"wavelength": "{400, 500, 600}", "fwhm": "{1, 1, 1}", "data_ignore_value": 7}
            rawfiles.envi(
                place / "x.img", cube, wavelength_units="nm", reflectance_scale_factor=10000, **told
            )
        elif kind == "mat":
            rawfiles.matlab5(path, cube, wavelengths=np.array([400.0, 500, 600]), maxValue=60000.0)
            rawfiles.flat_matlab5(place / "flat.mat", cube)
            made.append(place / "flat.mat")
        elif kind == "h5":
            import h5py

            with h5py.File(path, "w") as file:
                file.create_dataset("cube", data=cube, chunks=(3, 4, 4), compression="gzip")
                file["g/wavelengths"] = np.array([400.0, 500, 600])
                file["soft"] = h5py.SoftLink("/cube")
        elif kind == "mat73":
            rawfiles.matlab73(path, cube, wavelengths=[400, 500, 600])
        elif kind == "nc":
            rawfiles.netcdf4(path, cube, wavelengths=[400, 500, 600], fill=7)
        elif kind == "tif":
            rawfiles.geotiff(path, cube, wavelengths=[400, 500, 600], nodata=7, compress="deflate")
            rawfiles.geotiff(
                place / "t.tif",
                cube,
                tiled=True,
                blockxsize=16,
                blockysize=16,
                interleave="pixel",
                crs="EPSG:4326",
            )
            made.append(place / "t.tif")
        else:
            made = [
                rawfiles.png_folder(
                    place / "x", rawfiles.cube(1, 8, 9, "uint16" if kind == "png16" else "uint8")
                )
                / "x_01.png"
            ]
        contents = [m.read_bytes() for m in made]
        shutil.rmtree(place)
        return contents

    @patch.object(
        hdf5, "check_it_comes_back", lambda path: _check_in_a_fork(path)
    )  # for other tests it stays
    def read(self, kind: str, content: bytes) -> None:
        raw, out = self.folder / "raw", self.folder / "out.zarr"
        for left in (raw, out, self.folder / "out.zarr.staging"):
            shutil.rmtree(left, ignore_errors=True)
        raw.mkdir()
        if kind.startswith("png"):
            kept = rawfiles.cube(2, 8, 9, "uint16" if kind == "png16" else "uint8")
            (rawfiles.png_folder(raw / "bad", kept) / "bad_03.png").write_bytes(content)
        elif kind == "hdr":
            (raw / "bad.img").write_bytes(rawfiles.cube(3, 8, 9).tobytes())
            (raw / "bad.hdr").write_bytes(content)
        else:
            (raw / f"bad.{'mat' if kind == 'mat73' else kind}").write_bytes(content)
        archive = open_archive(out, create=True)
        for source in find(
            [raw]
        ).sources:  # as `ingest` does, without the net that it has below it; it puts the name in front
            outcome = expect(partial(ingest_one, archive, source, IngestOptions(), False), [""])
            if outcome is not None and (problems := list(check_scene(archive[outcome.name]))):
                raise BrokenContractError(f"ingested a bad scene: {problems[0]}")


def _check_in_a_fork(path: Path) -> None:
    """As the reader does, a hundred times faster than by a new process."""
    with WATCH.paused():
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(5)
        touch_all(str(path))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise damaged("HDF5 file", f"signal {os.WTERMSIG(status)}")


class Metadata(Target):
    """What lies in an archive: metadata, shards, and what is beside the pixels."""

    kinds = (
        *(
            "zarr.json",
            "s/zarr.json",
            "s/radiance/zarr.json",
            "s/wavelength/zarr.json",
            "s/valid_mask/zarr.json",
        ),
        *("s/shard_checksum/zarr.json", "s/codes/zarr.json", "s/support/zarr.json", "s/dictionary/zarr.json"),
        *(
            "s/cell_y/zarr.json",
            "s/radiance/c/0/0/0",
            "s/wavelength/c/0",
            "s/valid_mask/c/0/0",
            "s/codes/c/0/0/0",
        ),
        "s/shard_checksum/c/0/0",
    )

    def __init__(self, folder: Path) -> None:
        self.template = folder / "template"
        noisy = open_archive(folder / "noisy.zarr", create=True)
        values = smooth_scene(1, 4, 20, 24)
        valid = np.ones((20, 24), bool)
        valid[:3] = False
        values[:, ~valid] = 0
        add_scene(noisy, "s", values, valid)
        save_model(_small_model(), folder / "model", {})
        denoise_archive(noisy, folder / "model", folder / "a.zarr", DenoiseSettings(codes=True, device="cpu"))
        super().__init__(folder)

    def good(self, kind: str) -> list[bytes]:
        return [(self.folder / "a.zarr" / kind).read_bytes()]

    def read(self, kind: str, content: bytes) -> None:
        file = self.folder / "a.zarr" / kind
        kept = file.read_bytes()
        file.write_bytes(content)
        try:
            self._read()
        finally:
            file.write_bytes(kept)

    def _read(self) -> None:
        names = ["a.zarr", "scene s"]
        archive = expect(lambda: open_archive(self.folder / "a.zarr"), names) or Archive(
            self.folder / "a.zarr"
        )
        archive.has_root(), archive.names(), archive.fingerprint("s")
        scene = expect(lambda: archive["s"], names)
        if scene is not None:
            for what in (
                "digest",
                "content_sha256",
                "identities",
                "wavelengths",
                "fwhm",
                "shard_checksums",
                "code_count",
                "code_bytes",
            ):
                expect(partial(getattr, scene, what), names)
            for work in (scene.valid_mask, scene.stored, scene.read, scene.codes, scene.decode, scene.header):
                expect(work, names)
        for _, problems in validate(archive):
            for problem in problems:
                if "cannot be read (" in str(problem):
                    raise BrokenContractError(f"only the last net caught it: {str(problem)[:300]}")


class Models(Target):
    """Models, dictionaries and checkpoints; what guards them by a checksum is made to fit."""

    kinds = ("model.json", "model.safetensors", "d.safetensors", "state.pt", "manifest.json")

    def __init__(self, folder: Path) -> None:
        self.model = _small_model()
        super().__init__(folder)

    def good(self, kind: str) -> list[bytes]:
        self._write()
        return [self._path(kind).read_bytes()]

    def _path(self, kind: str) -> Path:
        folder = {
            "d.safetensors": "",
            "state.pt": "checkpoints/1-00-00000005",
            "manifest.json": "checkpoints/1-00-00000005",
        }
        return self.folder / folder.get(kind, "m") / kind

    def _write(self) -> None:
        save_model(self.model, self.folder / "m", {"scenes": {"a": ["x"]}})
        save_dictionary(self.model.atoms, self.folder / "d.safetensors", {"scenes": {"a": ["x"]}})
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        attempt = checkpoints.take_over(self.folder / "checkpoints", {})
        checkpoints.commit(attempt, "1-00-00000005", {"step": 5, "weights": {"a": torch.ones(3)}})

    def read(self, kind: str, content: bytes) -> None:
        self._write()
        self._path(kind).write_bytes(content)
        if kind == "model.safetensors":
            card = json.loads((self.folder / "m/model.json").read_text())
            card["weights_sha256"] = hashlib.sha256(content).hexdigest()
            (self.folder / "m/model.json").write_text(json.dumps(card))
        if kind == "state.pt":
            sums = {"checksums": {kind: checksum_of(self._path(kind))}}
            self._path("manifest.json").write_text(json.dumps(sums))
        if kind.startswith("model"):
            expect(lambda: read_card(self.folder / "m"), [f"{self.folder}/m"])
            found = expect(lambda: load_model(self.folder / "m"), [f"{self.folder}/m"])
            if found is not None and not all(
                bool(torch.isfinite(p).all()) for p in found.state_dict().values()
            ):
                raise BrokenContractError("a model of numbers that are none")
        elif kind == "d.safetensors":
            expect(lambda: load_dictionary(self.folder / kind), [kind])
            expect(lambda: read_dictionary_card(self.folder / kind), [kind])
        else:
            expect(lambda: checkpoints.load(self._path(kind).parent), ["1-00-00000005"])
            expect(lambda: checkpoints.latest(self.folder / "checkpoints"), ["1-00-00000005"])


class Ledgers(Target):
    """Plans and ledgers of bulk runs, and split files."""

    kinds = ("job.json", "unit", "complete/s.json", "failed/t.json", "split.json")

    def __init__(self, folder: Path) -> None:
        noisy = open_archive(folder / "noisy.zarr", create=True)
        add_scene(noisy, "s", smooth_scene(1, 4, 20, 24))
        add_scene(noisy, "t", smooth_scene(2, 4, 20, 24))
        save_model(_small_model(), folder / "model", {})
        denoise_archive(noisy, folder / "model", folder / "a.zarr", DenoiseSettings(device="cpu"))
        Ledger(open_archive(folder / "a.zarr")).fail("t", "it is bad")
        write_split(split_of({"train": [noisy["s"]], "test": [noisy["t"]]}), folder / "split.json")
        self.noisy = noisy
        shutil.copytree(folder / "a.zarr.ledger", folder / "kept")
        super().__init__(folder)

    def good(self, kind: str) -> list[bytes]:
        return [self._path(kind).read_bytes()]

    def _path(self, kind: str) -> Path:
        if kind == "split.json":
            return self.folder / kind
        return next((self.folder / "a.zarr.ledger").glob("units/s/*/*.json" if kind == "unit" else kind))

    def read(self, kind: str, content: bytes) -> None:
        shutil.rmtree(self.folder / "a.zarr.ledger", ignore_errors=True)
        shutil.copytree(self.folder / "kept", self.folder / "a.zarr.ledger")
        ledger, out = Ledger(Archive(self.folder / "a.zarr")), self.folder / "a.zarr"
        job = ledger.job()
        path = self._path(kind)
        kept = path.read_bytes()
        path.write_bytes(content)
        names = ["a.zarr", "split.json"]
        if kind == "split.json":
            split = expect(lambda: read_split(path), names)
            if split is not None:
                expect(lambda: split.take(self.noisy, "train"), ["noisy.zarr", "part", "scene"])
            path.write_bytes(kept)
            return
        expect(ledger.job, names)
        expect(lambda: status_of(out), names)
        expect(lambda: list(verify(out)), names)
        for scene in job.scenes:
            expect(partial(ledger.completed, scene.name), names)
            expect(partial(ledger.wants, scene), names)
            for unit in scene.units():
                expect(partial(ledger.read, unit), names)
        expect(ledger.failures, names)
        expect(lambda: ledger.begin(job), names)


class Configs(Target):
    """Configurations, overrides, studies and job profiles."""

    kinds = ("config.yaml", "overrides", "study.yaml", "profile.yaml")

    def good(self, kind: str) -> list[bytes]:
        configs = Path(__file__).parents[2] / "configs"
        if kind == "config.yaml":
            return [
                path.read_bytes()
                for path in (configs / "deq-full.yaml", configs / "peers/memnet.yaml")
                if path.is_file()
            ]
        if kind == "overrides":
            return [
                b"model.solver.kind=picard\nnoise.sigma=[30,50]\ntraining.steps=3 epochs\nmodel.prior={kind: qrnn3d, layers: 3}"
            ]
        if kind == "profile.yaml":
            return [(configs.parent / "slurm/profiles/example-h100.yaml").read_bytes()]
        study = "about: x\nsettings:\n  training.steps: 5\nruns:\n  prior: {training.steps: 0}\n  base: {after: prior, seed: 1}\n"
        return [study.encode()]

    def read(self, kind: str, content: bytes) -> None:
        file = self.folder / kind
        file.write_bytes(content)
        train = "data.train=a.zarr"
        if kind == "overrides":
            words = content.decode(errors="replace").split("\n")
            config = expect(
                lambda: load_train_config(None, [train, *words]), [""]
            )  # there is no file to name
        elif kind == "config.yaml":
            config = expect(lambda: load_train_config(file, [train]), [kind])
        elif kind == "study.yaml":
            expect(lambda: read_study(file, self.folder / "out", [train]), [kind])
            return
        else:
            expect(lambda: job_request({"time": "60"}, str(file)), [kind])
            return
        if config is not None:
            (self.folder / "again.yaml").write_text(dump_yaml(config))
            again = expect(lambda: load_train_config(self.folder / "again.yaml", []), ["again.yaml"])
            if again != config:
                raise BrokenContractError("what is written reads back as something else")


def _small_model() -> SparseDenoiser:
    torch.manual_seed(0)
    dictionary = torch.nn.functional.normalize(torch.randn(4, 6), dim=0)
    settings = ModelSettings(
        block=8,
        prior=CnnSettings(layers=2, filters=3),
        support=SupportSettings(size=2),
        solver=Picard(iterations=2, tolerance=0.0),
    )
    return SparseDenoiser(settings, dictionary)


TARGETS: dict[str, type[Target]] = {
    "readers": Readers,
    "metadata": Metadata,
    "models": Models,
    "ledgers": Ledgers,
    "configs": Configs,
}
