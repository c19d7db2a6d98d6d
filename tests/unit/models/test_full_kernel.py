"""The kernel of the full map against its torch code: on the GPU where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from hpcdeq.models import full
from hpcdeq.models.full import FullMap, Identity

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, MU = 0.7, 0.05


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    """The kernel's module; without a GPU Triton interprets it, as tests/conftest.py says."""
    pytest.importorskip("triton.language")
    from hpcdeq.models import full_kernel

    return full_kernel


@pytest.fixture
def forget() -> Iterator[None]:
    """Make the map look for the kernel anew, before the test and after it."""
    full._kernel.cache_clear()
    yield
    full._kernel.cache_clear()


def full_map(blocks: int, pixels: int, bands: int, atoms: int, identity: Identity = "hqs") -> FullMap:
    generator = torch.Generator().manual_seed(1)
    d = torch.randn(bands, atoms, generator=generator)
    d = (d / torch.linalg.vector_norm(d, dim=0)).to(DEVICE)
    noisy = torch.rand(blocks, pixels, bands, generator=generator).to(DEVICE)
    b, mu = (torch.tensor(x, device=DEVICE) for x in (B, MU))
    return FullMap(noisy, d, b, mu, lambda x: torch.sin(3 * x), identity)


def by_kernel(kernel: ModuleType, f: FullMap, state: Tensor, right: Tensor) -> Tensor:
    with torch.no_grad():
        return kernel.fused_step(state, right, f._dictionary, f._inverse, f._b, f._c, f._threshold)


def difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("identity", ["hqs", "paper"])
@pytest.mark.parametrize(
    ("blocks", "pixels", "bands", "atoms"),
    [(2, 40, 31, 512), (1, 64, 31, 64), (3, 25, 9, 100), (2, 33, 33, 64), (1, 1, 1, 1), (1, 20, 64, 1000)],
)
def test_the_kernel_is_the_torch_code(
    kernel: ModuleType, blocks: int, pixels: int, bands: int, atoms: int, identity: Identity
) -> None:
    f = full_map(blocks, pixels, bands, atoms, identity)
    state = f.start()
    for _ in range(2):
        right = f._noisy + f._b * f._prior(f.observe(state))
        expected = f._state(f.codes(state), right)
        image = by_kernel(kernel, f, state, right)
        assert difference(image, expected) < 1e-5
        assert difference(f.observe(image), f.observe(expected)) < 1e-5
        assert difference(f.observe(image), image[..., :atoms] @ f._dictionary.T) < 1e-5
        state = image


def test_the_kernel_of_a_block_does_not_depend_on_its_batch_mates(kernel: ModuleType) -> None:
    f = full_map(3, 45, 31, 100)
    state, right = f.start(), f._noisy
    whole = by_kernel(kernel, f, state, right)
    for i in range(3):
        assert torch.equal(by_kernel(kernel, f, state[i : i + 1], right[i : i + 1])[0], whole[i])


def test_a_pixel_that_is_not_finite_stays_the_only_one(kernel: ModuleType) -> None:
    f = full_map(1, 40, 31, 100)
    state = f.start()
    expected = by_kernel(kernel, f, state, f._noisy)
    state[0, 7, 3] = torch.nan
    image = by_kernel(kernel, f, state, f._noisy)
    assert image[0, 7].isnan().all()
    others = torch.arange(40, device=DEVICE) != 7
    assert torch.equal(image[:, others], expected[:, others])


def test_the_kernel_takes_a_dictionary_of_any_memory_and_only_contiguous_states(kernel: ModuleType) -> None:
    f = full_map(1, 40, 31, 100)
    state = f.start()
    expected = by_kernel(kernel, f, state, f._noisy)
    f._dictionary = f._dictionary.T.contiguous().T
    assert torch.equal(by_kernel(kernel, f, state, f._noisy), expected)
    with pytest.raises(AssertionError, match="contiguous"):
        by_kernel(kernel, f, state.transpose(1, 2).contiguous().transpose(1, 2), f._noisy)


def test_the_map_goes_through_the_kernel_where_it_is_available(
    kernel: ModuleType, monkeypatch: pytest.MonkeyPatch, forget: None
) -> None:
    monkeypatch.setattr(FullMap, "_in_cache", FullMap._fused)  # as on a GPU
    monkeypatch.setattr(kernel, "available", lambda state, bands: bands == 9)
    steps, fused_step = [], kernel.fused_step
    monkeypatch.setattr(kernel, "fused_step", lambda *a: steps.append(1) or fused_step(*a))
    f = full_map(2, 25, 9, 100)
    state = f.start()
    expected = f(state)
    assert not steps, "gradients are on"
    with torch.no_grad():
        assert difference(f(state), expected) < 1e-5
    assert steps


def test_the_map_works_without_triton(monkeypatch: pytest.MonkeyPatch, forget: None) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "hpcdeq.models.full_kernel", raising=False)
    monkeypatch.delattr("hpcdeq.models.full_kernel", raising=False)
    monkeypatch.setattr(FullMap, "_in_cache", FullMap._fused)  # as on a GPU
    f = full_map(2, 25, 9, 100)
    state = f.start()
    expected = f(state)
    with torch.no_grad():
        assert difference(f(state), expected) < 1e-5
    assert full._kernel() is None


def test_the_kernel_is_for_float32_on_a_gpu_without_gradients(kernel: ModuleType) -> None:
    state = full_map(1, 4, 9, 100).start()
    with torch.no_grad():
        assert kernel.available(state, 9) == (DEVICE == "cuda")
        assert not kernel.available(state.double(), 9)
        assert not kernel.available(state, 65)
    assert not kernel.available(state, 9)


def test_a_machine_where_triton_fails_says_so_and_does_without(
    kernel: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> Tensor:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(kernel, "fused_step", fail)
    kernel._works.cache_clear()
    with pytest.warns(UserWarning, match="Failed to find C compiler"):
        assert not kernel._works(torch.device(DEVICE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not kernel._works(torch.device(DEVICE)), "once is enough"
    kernel._works.cache_clear()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hpcdeq.models import full_kernel

sizes = {"atoms": 512, "bands": 31, "TILE": full_kernel._PIXELS[32], "CHUNK": full_kernel._ATOMS, "BANDS": 32}
kinds = {"pixels": "i32"} | dict.fromkeys(sizes, "constexpr")
signature = {name: kinds.get(name, "*fp32") for name in full_kernel._step.arg_names}
options = {"num_warps": full_kernel._WARPS, "num_stages": full_kernel._STAGES}
triton.compile(ASTSource(full_kernel._step, signature, sizes), target=GPUTarget("cuda", 80, 32), options=options)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_the_kernel_compiles_for_a_gpu_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes more than the compiler does."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", COMPILE], check=True)
    assert list(tmp_path.rglob("*.cubin"))


def test_importing_the_models_does_not_import_triton() -> None:
    code = "import sys, hpcdeq.models, hpcdeq.models.denoiser; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
