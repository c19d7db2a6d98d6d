"""The fuzzing of ``python -m tests.fuzz``, a few seconds of it, always the same; and what it once found."""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Callable
from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.contract import scratch
from tests.fuzz.mutations import mutate
from tests.fuzz.targets import TARGETS, Target


@cache
def target(name: str) -> Target:
    place = scratch()
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return TARGETS[name](place / "files")


@pytest.mark.parametrize("name", TARGETS)
def test_sound_files_are_read(name: str) -> None:
    for case in target(name).seeds:
        target(name).run(case)


@pytest.mark.parametrize("name", TARGETS)
@given(random=st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_hostile_files_give_a_result_or_an_error_that_names_them(name: str, random: Random) -> None:
    case = random.choice(target(name).seeds)
    target(name).run(case[:1] + mutate(case[1:], random))


_DEEP = b"[" * 100_000
_NO_TEXT = b"\xff\xfe{}"
FOUND: list[tuple[str, str, Callable[[bytes], bytes]]] = [
    ("readers", "npz", lambda good: good[:70] + b"\xff\xff\xff\xff" + good[74:]),
    ("readers", "npz", lambda good: good[: len(good) // 2]),
    ("readers", "npy", lambda good: good.replace(b"'descr'", b"((((((('")),
    ("readers", "npy", lambda good: good.replace(b"<f4", b"f4," * 1)),
    ("readers", "nc", lambda good: good.replace(b"sensor", b"sensXr")),
    (
        "readers",
        "nc",
        lambda good: good[: (heap := good.index(b"GCOL") + 16)] + bytes(48) + good[heap + 48 :],
    ),
    ("readers", "mat73", lambda good: good.replace(b"MATLAB_class", b"MATLAB_clasX")),
    ("readers", "hdr", lambda good: good.replace(b"header offset = 0", b"header offset = -4")),
    ("readers", "hdr", lambda good: good.replace(b"10000", b"0")),
    ("readers", "hdr", lambda good: good.replace(b"10000", b"nan")),
    ("readers", "tif", lambda good: good[:8] + b"\xff" * 20 + good[28:]),
    ("metadata", "s/codes/zarr.json", lambda good: good[:-30]),
    ("metadata", "s/codes/zarr.json", lambda good: good.replace(b'"shape"', b'"shapes"', 1)),
    ("metadata", "s/codes/zarr.json", lambda good: _NO_TEXT),
    ("metadata", "s/radiance/zarr.json", lambda good: _DEEP),
    ("metadata", "zarr.json", lambda good: _DEEP),
    ("metadata", "zarr.json", lambda good: b"[]"),
    ("models", "model.json", lambda good: _NO_TEXT),
    ("models", "model.json", lambda good: _DEEP),
    ("models", "model.json", lambda good: good.replace(b'"filters": 3', b'"filters": 300000')),
    ("models", "model.json", lambda good: good.replace(b'"layers": 2', b'"layers": 2000000000')),
    ("models", "model.json", lambda good: good.replace(b'"provenance"', b'"provenanc"')),
    ("models", "model.safetensors", lambda good: good[:-4] + b"\0\0\xc0\x7f"),
    ("models", "state.pt", lambda good: good[: len(good) // 2]),
    ("models", "state.pt", lambda good: b"x"),
    ("models", "manifest.json", lambda good: b'{"checksums": 3}'),
    ("models", "manifest.json", lambda good: _DEEP),
    ("models", "manifest.json", lambda good: b'{"checksums": {"' + b"x" * 300 + b'": 1}}'),
    ("ledgers", "job.json", lambda good: b"[]"),
    ("ledgers", "job.json", lambda good: good.replace(b"float32", b"fmoat32")),
    ("ledgers", "job.json", lambda good: good.replace(b'"s"', b"[]")),
    ("ledgers", "unit", lambda good: b'{"tiles": 3}'),
    ("ledgers", "complete/s.json", lambda good: b"[]"),
    ("ledgers", "complete/s.json", lambda good: b'{"checksums": []}'),
    ("ledgers", "failed/t.json", lambda good: b"3"),
    ("ledgers", "failed/t.json", lambda good: _DEEP),
    ("ledgers", "split.json", lambda good: _DEEP),
    ("ledgers", "split.json", lambda good: _NO_TEXT),
    ("configs", "config.yaml", lambda good: _NO_TEXT),
    ("configs", "config.yaml", lambda good: b"run: " + b"{a: " * 2000),
    ("configs", "config.yaml", lambda good: b"seed: " + b"9" * 5000),
    ("configs", "config.yaml", lambda good: b"".join(b"k%d: 1\n" % i for i in range(3000))),
    ("configs", "config.yaml", lambda good: b"trainin: 3"),
    ("configs", "overrides", lambda good: b"a=[&x [1], *x]"),
    ("configs", "overrides", lambda good: b"model.prior={k" + b"training.steps=3" * 2000),
    ("configs", "overrides", lambda good: b"Noise.sigma=3"),
    ("configs", "overrides", lambda good: b"model.Block=3"),
    ("configs", "study.yaml", lambda good: _NO_TEXT),
    ("configs", "study.yaml", lambda good: b"runs: " + b"[" * 5000),
    ("configs", "profile.yaml", lambda good: b"a: " + b"[" * 5000),
    ("configs", "profile.yaml", lambda good: b"partition: a b"),
    ("configs", "profile.yaml", lambda good: b"gpus-per-node: x"),
    ("configs", "profile.yaml", lambda good: b"nodes: " + b"9" * 5000),
]


@pytest.mark.parametrize("number", range(len(FOUND)))
def test_what_once_broke_it_does_so_no_more(number: int) -> None:
    name, kind, change = FOUND[number]
    reads = target(name)
    good = next(case for case in reads.seeds if reads.kinds[case[0]] == kind)
    case = good[:1] + change(good[1:])
    assert case != good
    reads.run(case)
