from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hpcdeq.peers import LlrtSettings, llrt
from hpcdeq.peers.llrt import _spectra, differences, shrink_power, shrink_singular_values, solve_spectra
from hpcdeq.peers.patches import Aggregate

QUICK = LlrtSettings(group=60, window=12)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fields(size: int, bands: int = 10) -> Tensor:
    """(band, y, x) in [0, 1]: repeated fields with three smooth spectra."""
    at = torch.linspace(0, math.pi, bands)
    spectra = torch.stack([0.5 + 0.4 * torch.cos(at * k / 2 + k) for k in range(3)])
    y, x = torch.meshgrid(torch.arange(size) // 8, torch.arange(size) // 8, indexing="ij")
    return spectra[(y + 2 * x) % 3].permute(2, 0, 1)


def noisy(scene: Tensor, sigma: float) -> Tensor:
    return scene + sigma * torch.randn(
        scene.shape, generator=torch.Generator().manual_seed(1), dtype=scene.dtype
    )


def psnr(scene: Tensor, estimate: Tensor) -> float:
    return -10 * math.log10(float((scene - estimate).square().mean()))


@pytest.mark.parametrize("shape", [(9, 30), (30, 9), (7, 7)])
def test_shrunk_singular_values_are_the_limit_of_reweighted_thresholds(shape: tuple[int, int]) -> None:
    """And the singular vectors stay. Some values vanish, some do not; one of the matrices vanishes as a whole."""
    matrices = random(3, *shape)
    weight = torch.tensor([0.5, 3.0, 500.0], dtype=torch.float64)
    found = shrink_singular_values(matrices, weight)
    for matrix, w, out in zip(matrices, weight.tolist(), found, strict=True):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        limits = []
        for value in s.tolist():
            x = value
            for _ in range(4000):
                x = max(value - w / x, 0.0) if x > 0 else 0.0
            limits.append(x)
        x_values = torch.tensor(limits, dtype=torch.float64)
        torch.testing.assert_close(out, u @ torch.diag(x_values) @ vh, rtol=0, atol=1e-7)
    assert found[0].any()
    assert not found[2].any()


def test_each_shrunk_singular_value_is_a_minimiser_on_a_fine_grid() -> None:
    """Of (x - s)^2 / 2 + w log x right of the smaller root, where the function has its maximum."""
    s, w = torch.linspace(2.1, 9, 40, dtype=torch.float64), 1.0
    found = shrink_singular_values(torch.diag(s)[None], torch.tensor([w], dtype=torch.float64))[0].diagonal()
    for value, x in zip(s.tolist(), found.tolist(), strict=True):
        smaller = (value - math.sqrt(value**2 - 4 * w)) / 2
        grid = torch.linspace(smaller, value, 200001, dtype=torch.float64)
        best = grid[((grid - value).square() / 2 + w * grid.log()).argmin()]
        assert x == pytest.approx(float(best), abs=1e-4)


def test_a_weight_of_zero_changes_no_matrix() -> None:
    matrices = random(2, 6, 20)
    matrices[1, 3:] = 0
    torch.testing.assert_close(
        shrink_singular_values(matrices, torch.zeros(2, dtype=torch.float64)), matrices
    )


@pytest.mark.parametrize("exponent", [0.3, 0.5, 2 / 3, 0.8, 1.0])
@pytest.mark.parametrize("weight", [0.01, 0.7, 40.0])
def test_the_power_shrinkage_finds_the_minimiser_on_a_fine_grid(exponent: float, weight: float) -> None:
    values = torch.linspace(-3, 3, 61, dtype=torch.float64) * weight ** (1 / (2 - exponent))
    found = shrink_power(values, weight, exponent)
    for value, x in zip(values.tolist(), found.tolist(), strict=True):
        grid = torch.linspace(0, abs(value), 100001, dtype=torch.float64)
        cost = (grid - abs(value)).square() / 2 + weight * grid**exponent
        own = (x - value) ** 2 / 2 + weight * abs(x) ** exponent
        assert own <= float(cost.min()) * (1 + 1e-9) + 1e-12
        assert x * value >= 0


@pytest.mark.parametrize("exponent", [0.5, 0.8])
def test_what_the_power_shrinkage_keeps_is_stationary(exponent: float) -> None:
    values = torch.linspace(0, 10, 400, dtype=torch.float64)
    x = shrink_power(values, 0.7, exponent)
    kept = x > 0
    assert kept.any()
    assert not kept.all()
    gradient = x - values + 0.7 * exponent * x ** (exponent - 1)
    torch.testing.assert_close(gradient[kept], torch.zeros_like(gradient[kept]), rtol=0, atol=1e-12)


def test_no_weight_shrinks_nothing() -> None:
    assert torch.equal(shrink_power(random(9), 0.0, 0.5), random(9))


@pytest.mark.parametrize("bands", [2, 7, 31])
def test_the_linear_subproblem_fulfils_its_normal_equations(bands: int) -> None:
    right = random(20, bands)
    x = solve_spectra(right, 1.3, 10.05)
    slope = x[:, 1:] - x[:, :-1]
    back = torch.zeros_like(x)
    back[:, 1:] += slope
    back[:, :-1] -= slope
    torch.testing.assert_close(1.3 * back + 10.05 * x, right)
    torch.testing.assert_close(x @ differences(bands, x.device).double().T, slope)


def pulled(scene: Tensor, weight: float) -> Aggregate:
    groups = Aggregate(scene)
    groups.total, groups.weight = weight * scene, torch.full_like(scene[:, :1], weight)
    return groups


def test_the_spectra_converge_to_the_minimiser_of_their_problem() -> None:
    """Optimality for exponent 1: the gradient of the smooth part is -t D^T v with |v| <= 1, v the sign where D x is not 0."""
    data, centre = random(4, 6, seed=1).float() * 10, random(4, 6, seed=2).float() * 10
    t, weight = 6.0, 3.0
    settings = LlrtSettings(inner_iterations=1000, growth=1.0, coupling=2.0)
    x = _spectra(data, pulled(centre, weight), t, settings).double()
    gradient = 0.05 * (x - data) + weight * (x - centre)
    v = -gradient.cumsum(1) / t  # D^T v = -gradient / t has v_k = sum of gradient_0..k / t
    slope = x[:, 1:] - x[:, :-1]
    torch.testing.assert_close(v[:, -1], torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-4)
    assert float(v.abs().max()) <= 1 + 1e-4
    moved = slope.abs() > 1e-3
    assert moved.any()
    assert not moved.all()
    torch.testing.assert_close(-v[:, :-1][moved], slope.sign()[moved], rtol=0, atol=1e-3)


def literal_llrt(scene: Tensor, sigma: float, settings: LlrtSettings, patch: int, share: float) -> Tensor:
    """Two outer iterations, one patch after the other, with singular value decompositions, in double precision."""
    bands, height, width = scene.shape
    noisy_scene = scene.double() * 255
    estimate, noise = noisy_scene, sigma * 255
    rows, columns = height - patch + 1, width - patch + 1
    keys = [(y, x) for y in range(0, rows, settings.step) for x in range(0, columns, settings.step)]
    image, count, groups = estimate.mean(0), settings.group - 10, {}
    for y, x in keys:
        near = []
        for cy in range(max(0, y - settings.window), min(rows, y + settings.window + 1)):
            for cx in range(max(0, x - settings.window), min(columns, x + settings.window + 1)):
                off = image[cy : cy + patch, cx : cx + patch] - image[y : y + patch, x : x + patch]
                near.append((float(off.square().sum()), cy, cx))
        groups[y, x] = [(cy, cx) for _, cy, cx in sorted(near)[:count]]
    for iteration in range(2):
        level = torch.full((rows, columns), noise, dtype=torch.float64)
        if iteration:
            removed = (noisy_scene - estimate).square()
            for y in range(rows):
                for x in range(columns):
                    left = noise**2 - float(removed[:, y : y + patch, x : x + patch].mean())
                    level[y, x] = share * math.sqrt(abs(left))
        total, weight = torch.zeros_like(estimate), torch.zeros(height, width, dtype=torch.float64)
        for key, members in groups.items():
            matrix = torch.stack(
                [estimate[:, y : y + patch, x : x + patch].flatten() for y, x in members], dim=1
            )
            mean = matrix.mean(1, keepdim=True)
            u, s, vh = torch.linalg.svd(matrix - mean, full_matrices=False)
            c = settings.rank_weight * math.sqrt(count) * 2 * level[key] ** 2
            inner = s.square() - 4 * c
            x_values = torch.where(inner > 0, (s + inner.clamp_min(0).sqrt()) / 2, 0.0)
            back = u @ torch.diag(x_values) @ vh + mean
            for (y, x), column in zip(members, back.T, strict=True):
                total[:, y : y + patch, x : x + patch] += column.reshape(bands, patch, patch)
                weight[y : y + patch, x : x + patch] += 1
        d = torch.zeros(bands - 1, bands, dtype=torch.float64)
        for k in range(bands - 1):
            d[k, k], d[k, k + 1] = -1, 1
        data, pull, w = (a.reshape(-1, height * width) for a in (noisy_scene, total, weight))
        alpha, beta, m = settings.coupling, settings.splitting, pull / w
        z, m_dual, z_dual = d @ m, torch.zeros_like(m), torch.zeros_like(d @ m)
        threshold = settings.spectral_weight * float(level.mean()) ** 2
        for _ in range(settings.inner_iterations):
            system = beta * d.T @ d + (alpha + settings.data_weight) * torch.eye(bands, dtype=torch.float64)
            x_band = torch.linalg.solve(
                system, settings.data_weight * data + alpha * m - m_dual + d.T @ (beta * z - z_dual)
            )
            m = (pull + alpha * x_band + m_dual) / (alpha + w)
            m_dual = m_dual + alpha * (x_band - m)
            alpha *= settings.growth
            raised = d @ x_band + z_dual / beta
            z = raised.sign() * (raised.abs() - threshold / beta).clamp_min(0)
            z_dual = z_dual + beta * (d @ x_band - z)
            beta *= settings.growth
        estimate = x_band.reshape(bands, height, width)
    return estimate / 255


def test_two_iterations_are_those_of_a_literal_loop() -> None:
    """With 18 x 23 pixels, patches of 8 and steps of 5 the grid ends at the border."""
    scene = noisy(fields(24)[:, :18, :23], 50 / 255)
    settings = LlrtSettings(group=45, window=7, iterations=2)
    expected = literal_llrt(scene, 50 / 255, settings, patch=8, share=0.58)
    torch.testing.assert_close(llrt(scene, 50 / 255, settings).double(), expected, rtol=0, atol=2e-5)


def test_sigma_to_zero_gives_the_scene_back() -> None:
    scene = noisy(fields(24), 0.2).clamp(0, 1)
    torch.testing.assert_close(llrt(scene, 1e-6, QUICK), scene, rtol=0, atol=2e-5)


def test_a_noise_free_scene_of_repeated_patches_comes_back() -> None:
    scene = fields(32)
    assert psnr(scene, llrt(scene, 2 / 255, QUICK)) > 60


@pytest.mark.parametrize("exponent", [0.7, 1.0])
def test_noise_at_sigma_50_falls_by_very_many_decibels(exponent: float) -> None:
    """8.3 and 9.6 dB are gained here, in small windows of a small scene."""
    scene = fields(40)
    given = noisy(scene, 50 / 255)
    found = llrt(given, 50 / 255, LlrtSettings(group=60, window=12, exponent=exponent))
    assert psnr(scene, found) > psnr(scene, given) + 7


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 8, 21), (5, 19, 26)])
def test_any_shape_is_denoised(shape: tuple[int, int, int]) -> None:
    clean = torch.full(shape, 0.5, dtype=torch.float64)
    out = llrt(noisy(clean, 0.15), 0.15)
    assert out.shape == clean.shape
    assert out.dtype == torch.float64
    assert psnr(clean, out) > psnr(clean, noisy(clean, 0.15))


def test_the_same_scene_gives_the_same_bytes_and_is_not_touched() -> None:
    given = noisy(fields(24), 0.1)
    before = given.clone()
    assert torch.equal(llrt(given, 0.1, QUICK), llrt(given, 0.1, QUICK))
    assert torch.equal(given, before)


@pytest.mark.parametrize(
    ("scene", "sigma", "told"),
    [
        (torch.rand(1, 20, 20), 0.1, "1 band"),
        (torch.rand(3, 20, 7), 0.19, "one patch of 8 x 8"),
        (torch.rand(3, 20, 20), -1.0, "sigma must be a positive number"),
        (torch.full((3, 20, 20), math.inf), 0.1, "not finite"),
    ],
)
def test_scenes_that_llrt_cannot_denoise_are_refused(scene: Tensor, sigma: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        llrt(scene, sigma)


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch": 1},
        {"step": 0},
        {"step": 7},
        {"window": 0},
        {"group": 21},
        {"exponent": 0.0},
        {"exponent": 1.5},
        {"rank_weight": -1.0},
        {"noise_share": -0.1},
        {"coupling": 0.0},
        {"growth": math.nan},
    ],
)
def test_wrong_llrt_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LlrtSettings(**wrong)  # type: ignore[arg-type]
