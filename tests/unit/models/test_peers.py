"""The learned denoisers that the paper compares its models with: HSID-CNN, MemNet and QRNN3D."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional as F

from hpcdeq.inference import DenoiseSettings, denoise_array
from hpcdeq.models import (
    HsidCnnSettings,
    MemNetSettings,
    ModelSettings,
    Qrnn3dUnetSettings,
    SparseDenoiser,
    load_model,
    save_model,
)
from hpcdeq.models.batch_norm import BatchNorm
from hpcdeq.models.denoiser import PriorSettings
from hpcdeq.models.hsid_cnn import HsidCnn
from hpcdeq.models.prior import Prior
from hpcdeq.solvers import Implicit, Picard, Unrolled

BANDS = 9
SMALL: dict[str, PriorSettings] = {
    "hsid_cnn": HsidCnnSettings(kind="hsid_cnn", neighbours=4, filters=12),
    "memnet": MemNetSettings(kind="memnet", filters=4, memory_blocks=2, residual_blocks=2),
    "qrnn3d_unet": Qrnn3dUnetSettings(kind="qrnn3d_unet", filters=2),
}
WITH_BATCH_NORM = ("memnet", "qrnn3d_unet")


def blocks(count: int = 4, size: int = 12) -> Tensor:
    return torch.rand(count, BANDS, size, size, generator=torch.Generator().manual_seed(2))


def dictionary() -> Tensor:
    atoms = torch.randn(BANDS, 20, generator=torch.Generator().manual_seed(1))
    return atoms / torch.linalg.vector_norm(atoms, dim=0)


def model(kind: str, **changes: object) -> SparseDenoiser:
    """With running averages that are those of no batch."""
    torch.manual_seed(3)
    settings: dict[str, object] = {"map": "prior", "block": 12, "prior": SMALL[kind]}
    denoiser = SparseDenoiser(ModelSettings(**{**settings, **changes}), dictionary())  # type: ignore[arg-type]
    for norm in denoiser.prior.batch_norms():
        norm.mean.uniform_(-0.1, 0.1)
        norm.variance.uniform_(0.5, 1.5)
    return denoiser


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("hsid_cnn", 399_161),  # numbers in the authors' released models
        ("memnet", 2_940_094),  # of QRNN3D's public code at 31 bands
        ("qrnn3d_unet", 860_453),  # of its authors' public code
    ],
)
def test_the_published_networks_have_as_many_parameters(kind: str, count: int) -> None:
    settings = TypeAdapter[PriorSettings](PriorSettings).validate_python({"kind": kind})
    atoms = torch.eye(31)
    assert SparseDenoiser(ModelSettings(map="prior", prior=settings), atoms).parameter_count == count


@pytest.mark.parametrize("kind", SMALL)
def test_gradients_reach_every_parameter_of_the_prior(kind: str) -> None:
    denoiser = model(kind).train()
    estimate = denoiser(blocks()).estimate
    assert estimate.shape == blocks().shape
    (estimate - 0.5).square().mean().backward()
    without = [n for n, p in denoiser.prior.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("kind", SMALL)
def test_a_block_has_the_same_bytes_in_any_batch_when_it_is_denoised(kind: str) -> None:
    denoiser, noisy = model(kind).eval(), blocks(5)
    with torch.inference_mode():
        together = denoiser(noisy).estimate
        assert torch.equal(torch.cat([denoiser(block).estimate for block in noisy.split(1)]), together)
        assert torch.equal(denoiser(noisy.flip(0)).estimate.flip(0), together)


@pytest.mark.parametrize("kind", SMALL)
def test_a_model_file_keeps_the_network_whole(kind: str, tmp_path: Path) -> None:
    denoiser = model(kind).train()
    denoiser(blocks()).estimate.sum().backward()
    denoiser.after_step()
    save_model(denoiser.eval(), tmp_path / "m", {})
    loaded = load_model(tmp_path / "m")
    assert loaded.settings == denoiser.settings
    with torch.inference_mode():
        assert torch.equal(loaded(blocks()).estimate, denoiser(blocks()).estimate)


@pytest.mark.parametrize("kind", SMALL)
def test_scenes_of_any_size_are_denoised(kind: str) -> None:
    """A scene smaller than a block is a tile of its own size."""
    for height, width in ((30, 25), (7, 30), (5, 6)):
        noisy = torch.rand(BANDS, height, width, generator=torch.Generator().manual_seed(1)).numpy()
        denoised = denoise_array(model(kind), noisy, DenoiseSettings(device="cpu"))
        assert denoised.shape == noisy.shape
        assert torch.isfinite(torch.from_numpy(denoised)).all()


@pytest.mark.parametrize("kind", SMALL)
def test_it_computes_in_16_bits_nearly_the_same(kind: str) -> None:
    denoiser = model(kind).eval()
    exact = denoiser(blocks()).estimate
    denoiser.prior_dtype = torch.bfloat16
    rounded = denoiser(blocks()).estimate
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.05 * exact.std().item())


def wave(shape: torch.Size | tuple[int, ...], phase: float) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.sin(0.7 * torch.arange(count, dtype=torch.float64) + phase).view(shape)


def fill(prior: Prior) -> Prior:
    """Numbers that can be written down anywhere."""
    prior.double()
    with torch.no_grad():
        for i, layer in enumerate(prior.layers()):
            layer.weight.copy_(0.3 * wave(layer.weight.shape, i))
            if layer.bias is not None:
                layer.bias.copy_(0.3 * wave(layer.bias.shape, i))
        for i, norm in enumerate(prior.batch_norms()):
            norm.weight.copy_(1 + 0.3 * wave(norm.weight.shape, i))
            norm.bias.copy_(0.3 * wave(norm.bias.shape, i + 1))
            norm.mean.copy_(0.3 * wave(norm.mean.shape, i + 2))
            norm.variance.copy_(1 + 0.5 * wave(norm.variance.shape, i + 3))
    return prior


@pytest.mark.parametrize(
    ("kind", "training", "expected"),
    [
        ("memnet", False, [-785.845130843193, -4281.811038347935, 20.33497963737, 2619.470757356125]),
        ("memnet", True, [0.070697365189, 0.088358557733, 0.583333435642, 1.049242091196]),
        ("qrnn3d_unet", False, [-1.48368723626, -0.987522622874, -0.40335231237, 1.211799384831]),
        ("qrnn3d_unet", True, [-1.407440765754, -0.950877355365, -0.346973422117, 1.246965948986]),
    ],
)
def test_it_gives_the_numbers_of_the_public_code(kind: str, training: bool, expected: list[float]) -> None:
    """Of https://github.com/Vandermode/QRNN3D (2f4b9ee): QRNNREDC3D(1, 2, 5, [1, 3], has_ad=True) and MemNet(9, 4, 2, 2)."""
    prior = fill(model(kind).prior).train(training)
    found = prior(0.5 + 0.5 * wave((2, BANDS, 12, 12), 0))
    picked = [found[0, 0, 0, 0], found[1, -1, 5, 7], found.mean(), found.std()]
    torch.testing.assert_close(torch.stack(picked).tolist(), expected, rtol=1e-9, atol=1e-9)


def test_hsid_cnn_denoises_each_band_from_itself_and_its_neighbours() -> None:
    """As the authors' demonstration does, band by band, and their network is written."""
    prior = HsidCnn(BANDS, HsidCnnSettings(kind="hsid_cnn", neighbours=4, filters=12))
    names = ["n3", "n5", "n7", "b3", "b5", "b7", *"123456789", "t3", "t5", "t7", "t9", "last"]
    layers = dict(zip(names, prior.layers(), strict=True))

    def conv(name: str, x: Tensor) -> Tensor:
        layer = layers[name]
        assert isinstance(layer, nn.Conv2d)
        return F.conv2d(x, layer.weight, layer.bias, padding="same")

    noisy, k = blocks(2), 2
    bands = []
    for i in range(1, BANDS + 1):
        if i <= k:
            seen = list(range(1, 2 * k + 1))
        elif i > BANDS - k:
            seen = list(range(BANDS - 2 * k + 1, BANDS + 1))
        else:
            seen = [*range(i - k, i), *range(i + 1, i + k + 1)]
        near, own = noisy[:, [j - 1 for j in seen]], noisy[:, i - 1 : i]
        x = torch.cat([conv("n3", near), conv("n5", near), conv("n7", near)], 1).relu()
        x = torch.cat([x, torch.cat([conv("b3", own), conv("b5", own), conv("b7", own)], 1).relu()], 1)
        after = {}
        for name in "123456789":
            x = after[name] = conv(name, x).relu()
        joined = torch.cat([conv(f"t{name}", after[name]) for name in "3579"], 1).relu()
        bands.append(own + conv("last", joined))
    torch.testing.assert_close(prior(noisy), torch.cat(bands, 1))


def test_hsid_cnn_is_a_prior_of_the_maps_too() -> None:
    gradients = []
    solver = Picard(iterations=40, tolerance=0)
    for adjoint in (Unrolled(), Implicit(solver=solver)):
        denoiser = model("hsid_cnn", map="fast", b=0.1, solver=solver, adjoint=adjoint).double()
        (denoiser(blocks(1, 8).double()).estimate ** 2).mean().backward()
        gradients.append([p.grad for p in denoiser.parameters()])
    for unrolled, implicit in zip(*gradients, strict=True):
        torch.testing.assert_close(implicit, unrolled, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("kind", WITH_BATCH_NORM)
@pytest.mark.parametrize("map_", ["fast", "full"])
def test_batch_normalisation_is_refused_in_a_map(kind: str, map_: str) -> None:
    with pytest.raises(
        ValueError, match=rf"prior.kind={kind} has batch normalisation.*map={map_}.*set map=prior"
    ):
        model(kind, map=map_)


@pytest.mark.parametrize("kind", WITH_BATCH_NORM)
def test_a_batch_is_normalised_whole_while_it_is_learnt_from_with_or_without_a_gradient(kind: str) -> None:
    denoiser, noisy = model(kind).train(), blocks()
    learnt = denoiser(noisy).estimate.detach()
    with torch.no_grad():
        torch.testing.assert_close(denoiser(noisy).estimate, learnt)
        assert not torch.allclose(denoiser(noisy[:1]).estimate, learnt[:1])


@pytest.mark.parametrize("kind", WITH_BATCH_NORM)
def test_running_averages_change_only_with_a_step(kind: str) -> None:
    denoiser = model(kind).train()
    before = {k: v.clone() for k, v in denoiser.state_dict().items()}
    denoiser(blocks() * torch.nan)
    denoiser(blocks())
    assert all(torch.equal(v, before[k]) for k, v in denoiser.state_dict().items())
    denoiser.after_step()
    (first, *_) = denoiser.prior.batch_norms()
    assert not torch.equal(first.mean, before["prior.norms.0.mean"])
    assert torch.isfinite(first.variance).all()
    after = {k: v.clone() for k, v in denoiser.state_dict().items()}
    denoiser.eval()(blocks())
    denoiser.after_step()
    assert all(torch.equal(v, after[k]) for k, v in denoiser.state_dict().items())


def test_batch_normalisation_is_that_of_torch() -> None:
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    for training in (True, True, False):
        hidden = torch.randn(4, 3, 5, 5) * 3 + 1
        assert torch.equal(ours.train(training)(hidden), theirs.train(training)(hidden))
        ours.advance()
    assert torch.equal(ours.mean, theirs.running_mean)  # type: ignore[arg-type]
    assert torch.equal(ours.variance, theirs.running_var)  # type: ignore[arg-type]


def test_wrong_settings_say_what_is_right() -> None:
    with pytest.raises(ValueError, match="block must be divisible by 4, got 22"):
        ModelSettings(map="prior", block=22, prior=SMALL["qrnn3d_unet"])
    with pytest.raises(
        ValueError, match=r"at most the number of bands, got 24 and 9 bands; set model.prior.neighbours"
    ):
        model("hsid_cnn", prior=HsidCnnSettings(kind="hsid_cnn"))
    with pytest.raises(ValueError, match="neighbours must be an even number from 2, got 5"):
        HsidCnnSettings(kind="hsid_cnn", neighbours=5)
    with pytest.raises(ValueError, match="filters must be divisible by 12, got 64"):
        HsidCnnSettings(kind="hsid_cnn", filters=64)
    with pytest.raises(ValueError, match="memory_blocks must be at least 1, got 0"):
        MemNetSettings(kind="memnet", memory_blocks=0)
    with pytest.raises(ValueError, match="filters must be at least 1, got 0"):
        Qrnn3dUnetSettings(kind="qrnn3d_unet", filters=0)
