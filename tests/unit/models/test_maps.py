"""The maps against the paper's equations, written out literally: codes G in full, dense products of atoms by atoms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hpcdeq.models import CnnSettings, ModelSettings, Qrnn3dSettings, SparseDenoiser, full
from hpcdeq.models.denoiser import PriorSettings
from hpcdeq.models.fast import FastMap
from hpcdeq.models.full import FullMap, Identity
from hpcdeq.models.support import SupportSettings, find_support
from hpcdeq.solvers import FixedPointMap

BANDS, ATOMS, PIXELS = 9, 40, 25
PRIORS: dict[str, PriorSettings] = {
    "cnn": CnnSettings(layers=3, filters=5),
    "direct": CnnSettings(layers=2, filters=5, residual=False, norm="none"),
    "noise map": CnnSettings(layers=3, filters=5, noise_map=True),
    "qrnn3d": Qrnn3dSettings(kind="qrnn3d", layers=2, filters=2),
}
BS = [0.05, 1.0, 30.0]


def problem() -> tuple[Tensor, Tensor]:
    """Y (block, pixel, band) and D (band, atom)."""
    generator = torch.Generator().manual_seed(1)
    atoms = torch.randn(BANDS, ATOMS, generator=generator, dtype=torch.float64)
    noisy = torch.rand(3, PIXELS, BANDS, generator=generator, dtype=torch.float64)
    return noisy, atoms / torch.linalg.vector_norm(atoms, dim=0)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


class Pointwise:
    """A prior N that knows nothing of its blocks."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def take(self, blocks: Tensor) -> Pointwise:
        return self


prior = Pointwise(lambda x: torch.sin(3 * x))


def soft(x: Tensor, threshold: float) -> Tensor:
    return x.sign() * (x.abs() - threshold).clamp_min(0)


def equations_11(y: Tensor, d: Tensor, g: Tensor, v: Tensor, z: Tensor, b: float, c: float) -> Tensor:
    """Return G of (10a), the first line of (11), of one block; ``y, z (band, pixel)``, ``g, v (atom, pixel)``; identity c I."""
    left = d.T @ d + b * d.T @ d + c * torch.eye(d.shape[1], dtype=d.dtype)
    return torch.linalg.solve(left, d.T @ y + b * v + b * d.T @ z)


def equation_14(y: Tensor, d: Tensor, g: Tensor, b: float, mu: float, c: float) -> Tensor:
    return equations_11(y, d, g, soft(g, mu / b), prior(d @ g), b, c)


def equation_32(y: Tensor, atoms: Tensor, g: Tensor, b: float) -> Tensor:
    return torch.linalg.solve(
        atoms.T @ atoms + b * atoms.T @ atoms, atoms.T @ y + b * atoms.T @ prior(atoms @ g)
    )


@pytest.mark.parametrize("gradients", [True, False], ids=["whole", "in cache"])
@pytest.mark.parametrize("identity", ["hqs", "paper"])
@pytest.mark.parametrize("b", BS)
def test_the_full_map_is_equation_14(
    b: float, identity: Identity, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full, "_CHUNK", 10)  # several chunks, the last one smaller
    y, d = problem()
    mu, c = 0.02 * b, b if identity == "hqs" else 1.0
    f = FullMap(y, d, scalar(b), scalar(mu), prior, identity)
    state = f.start()
    for _ in range(3 if identity == "hqs" or b <= 1 else 1):
        with torch.set_grad_enabled(gradients):
            image = f(state)
        for i in range(len(y)):
            g = state[i, :, :ATOMS].T
            literal = equation_14(y[i].T, d, g, b, mu, c)
            torch.testing.assert_close(image[i, :, :ATOMS].T, literal, rtol=1e-10, atol=2e-13 * max(1, b))
            torch.testing.assert_close(f.observe(image)[i].T, d @ literal, rtol=1e-10, atol=1e-12)
        state = image


def test_the_splitting_10_and_11_step_by_step_is_the_full_map() -> None:
    """(10b), (10c) with N in place of the proximal operator, then (10a): V and Z of the last iterate, then G."""
    y, d = problem()
    b, mu = 2.0, 0.1
    f = FullMap(y, d, scalar(b), scalar(mu), prior)
    state = f.start()
    g = state[0, :, :ATOMS].T
    for _ in range(4):
        v = soft(g, mu / b)  # (10b)
        z = prior(d @ g)  # (10c)
        g = equations_11(y[0].T, d, g, v, z, b, b)  # (10a)
        state = f(state)
    torch.testing.assert_close(state[0, :, :ATOMS].T, g, rtol=1e-10, atol=1e-12)


def test_both_identity_terms_agree_at_b_1() -> None:
    y, d = problem()
    hqs, paper = (FullMap(y, d, scalar(1.0), scalar(0.03), prior, i) for i in ("hqs", "paper"))
    state = hqs.start()
    assert torch.equal(state, paper.start())
    torch.testing.assert_close(hqs(state), paper(state), rtol=1e-12, atol=1e-14)


def test_the_gradient_of_the_lagrangian_vanishes_with_hqs_only() -> None:
    """(8): 1/2 ||Y - D G||^2 + b/2 ||V - G||^2 + b/2 ||Z - D G||^2 is least at the G of (10a) with identity b I."""
    y, d = problem()
    b = 5.0
    v, z = soft(d.T @ y[0].T, 0.1), prior(y[0].T)
    for c, least in ((b, True), (1.0, False)):
        g = equations_11(y[0].T, d, v, v, z, b, c)
        gradient = d.T @ (d @ g - y[0].T) + b * (g - v) + b * d.T @ (d @ g - z)
        assert (gradient.abs().max().item() < 1e-10) == least


def test_the_papers_identity_term_diverges_for_b_above_1_in_the_null_space() -> None:
    y, d = problem()
    f = FullMap(y, d, scalar(2.0), scalar(1e-3), Pointwise(lambda x: x), "paper")
    null = torch.linalg.svd(d).Vh[-1]
    state = f.start() + torch.cat([null, torch.zeros(BANDS, dtype=torch.float64)])
    sizes = []
    for _ in range(12):
        state = f(state)
        sizes.append((state[..., :ATOMS] @ null).abs().mean().item())
    assert sizes[-1] > 1000 * sizes[0]


def test_mixed_states_of_the_full_map_stay_codes_beside_their_block() -> None:
    y, d = problem()
    f = FullMap(y, d, scalar(3.0), scalar(0.05), prior)
    first, second = f(f.start()), f(f(f.start()))
    mixed = 1.7 * first - 0.7 * second
    torch.testing.assert_close(f.observe(mixed), mixed[..., :ATOMS] @ d.T, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("b", BS)
def test_the_fast_map_is_equation_32(b: float) -> None:
    y, d = problem()
    settings = SupportSettings(size=4)
    support = find_support(y, d, settings)
    f = FastMap(y, d, find_support(y, d, settings), scalar(b), prior)
    state = f.start()
    for i in range(len(y)):
        atoms, g = d[:, support[i]], None
        # (30): G, then Z; its first iterate is the projection of Y.
        g = torch.linalg.solve(atoms.T @ atoms, atoms.T @ y[i].T)
        torch.testing.assert_close(state[i].T, atoms @ g, rtol=1e-11, atol=1e-12)
        literal = atoms @ equation_32(y[i].T, atoms, g, b)
        torch.testing.assert_close(f(state)[i].T, literal, rtol=1e-11, atol=1e-12)


def test_the_projector_form_keeps_the_state_in_the_span_of_the_support() -> None:
    y, d = problem()
    settings = SupportSettings(size=4)
    atoms = d[:, find_support(y, d, settings)[0]]
    f = FastMap(y, d, find_support(y, d, settings), scalar(2.0), prior)
    image = f(f(f.start()))[0].T
    projector = atoms @ torch.linalg.inv(atoms.T @ atoms) @ atoms.T
    torch.testing.assert_close(projector @ image, image, rtol=1e-11, atol=2e-15 * 100)


@pytest.mark.parametrize("maker", ["fast", "full"])
def test_a_map_on_some_blocks_is_those_blocks_of_the_map(maker: str) -> None:
    y, d = problem()
    support = find_support(y, d, SupportSettings(size=4))
    f: FastMap | FullMap = (
        FastMap(y, d, support, scalar(2.0), prior)
        if maker == "fast"
        else FullMap(y, d, scalar(2.0), scalar(0.1), prior)
    )
    chosen = torch.tensor([2, 0])
    state = f.start()
    torch.testing.assert_close(f.take(chosen)(state[chosen]), f(state)[chosen], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chunk", [10, 512])
@pytest.mark.parametrize("identity", ["hqs", "paper"])
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("maker", ["fast", "full"])
def test_the_transposed_jacobian_is_that_of_autograd(
    maker: str, prior: PriorSettings, identity: Identity, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full, "_CHUNK", chunk)
    _, d = problem()
    settings = ModelSettings(
        map=maker,
        identity=identity,
        b=0.7,
        mu=0.05,
        prior=prior,
        support=SupportSettings(size=4),  # type: ignore[arg-type]
    )
    torch.manual_seed(0)
    model = SparseDenoiser(settings, d).double()
    f = model.iteration(torch.rand(3, BANDS, 5, 6, dtype=torch.float64))
    point = f(f.start()).detach()
    u = torch.randn(point.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = FixedPointMap.transpose_at(f, point)(u)
    with torch.no_grad():
        transpose = f.transpose_at(point)
        torch.testing.assert_close(transpose(u), expected, rtol=1e-10, atol=1e-12)
        some = torch.tensor([2, 0])
        torch.testing.assert_close(transpose.take(some)(u[some]), expected[some], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("learnt", ["fast", "full"])
def test_gradients_of_the_maps_pass_gradcheck(learnt: str) -> None:
    generator = torch.Generator().manual_seed(3)
    d = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    d = (d / torch.linalg.vector_norm(d, dim=0)).requires_grad_()
    y = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    log_b, log_mu = scalar(0.3).requires_grad_(), scalar(-2.0).requires_grad_()

    def applied(d: Tensor, log_b: Tensor, log_mu: Tensor) -> Tensor:
        f: FastMap | FullMap
        if learnt == "full":
            f = FullMap(y, d, log_b.exp(), log_mu.exp(), prior)
        else:
            f = FastMap(y, d, find_support(y, d, SupportSettings(size=2)), log_b.exp() + 0 * log_mu, prior)
        return f(f(f.start()))

    assert torch.autograd.gradcheck(applied, (d, log_b, log_mu))
