from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from hpcdeq.errors import ModelFileError
from hpcdeq.models import (
    CnnSettings,
    ModelSettings,
    Qrnn3dSettings,
    SparseDenoiser,
    SupportSettings,
    load_dictionary,
    load_model,
    save_dictionary,
    save_model,
)
from hpcdeq.models.cnn import Cnn
from hpcdeq.models.denoiser import PriorSettings
from hpcdeq.models.level import noise_level
from hpcdeq.models.qrnn3d import Qrnn3d
from hpcdeq.models.support import SupportMethod
from hpcdeq.noise import estimate_sigma
from hpcdeq.solvers import Anderson, Broyden, Implicit, Picard, Solver, Unrolled

BANDS, ATOMS = 9, 40


def dictionary(dtype: torch.dtype = torch.float32) -> Tensor:
    atoms = torch.randn(BANDS, ATOMS, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return atoms / torch.linalg.vector_norm(atoms, dim=0)


def blocks(count: int = 5, size: int = 20, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, BANDS, size, size, generator=torch.Generator().manual_seed(2), dtype=dtype)


def small(**changes: object) -> ModelSettings:
    base: dict[str, object] = {
        "block": 20,
        "prior": CnnSettings(layers=3, filters=8),
        "support": SupportSettings(size=4),
        "b": 2.0,
    }
    return ModelSettings(**{**base, **changes})  # type: ignore[arg-type]


def model(**changes: object) -> SparseDenoiser:
    torch.manual_seed(3)
    return SparseDenoiser(small(**changes), dictionary())


@pytest.mark.parametrize("method", get_args(SupportMethod))
@pytest.mark.parametrize("map_", ["fast", "full"])
@pytest.mark.parametrize("solver", [Anderson(), Picard(), Broyden()], ids=lambda s: s.kind)
def test_bytes_depend_neither_on_the_batch_nor_on_the_order(solver: Solver, map_: str, method: str) -> None:
    solver = replace(
        solver, iterations=14, tolerance=3e-2 if map_ == "fast" or solver.kind == "picard" else 3e-3
    )
    denoiser = model(solver=solver, map=map_, support=SupportSettings(size=4, method=method)).eval()
    # Of another brightness each, so that they converge at other iterations; 19 rows: blocks that are not aligned in memory.
    noisy = blocks(7)[:, :, 1:] * torch.logspace(-3, 0.5, 7)[:, None, None, None]
    with torch.inference_mode():
        together = denoiser(noisy)
        assert len(together.solution.iterations.unique()) > 1, "blocks should stop at different iterations"
        for size in (1, 2, 3):
            parts = torch.cat([denoiser(part).estimate for part in noisy.split(size)])
            assert torch.equal(parts, together.estimate)
        order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
        assert torch.equal(denoiser(noisy[order]).estimate, together.estimate[order])


PRIORS = {
    "deep": CnnSettings(layers=8, filters=6),
    "noise map": CnnSettings(layers=3, filters=6, noise_map=True),
    "qrnn3d": Qrnn3dSettings(kind="qrnn3d", layers=3, filters=3),
}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_any_prior_gives_a_block_the_same_bytes_in_any_batch(prior: PriorSettings) -> None:
    denoiser = model(prior=prior, solver=Anderson(iterations=6, tolerance=3e-2)).eval()
    noisy = blocks(5) * torch.logspace(-2, 0.5, 5)[:, None, None, None]
    with torch.inference_mode():
        together = denoiser(noisy)
        assert len(together.solution.iterations.unique()) > 1, (
            "blocks should leave the batch at different iterations"
        )
        assert torch.equal(torch.cat([denoiser(b).estimate for b in noisy.split(1)]), together.estimate)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_any_prior_is_trained_saved_and_loaded(prior: PriorSettings, tmp_path: Path) -> None:
    denoiser = model(prior=prior).train()
    denoiser(blocks(2)).estimate.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in denoiser.parameters())
    save_model(denoiser.eval(), tmp_path / "m", {})
    loaded = load_model(tmp_path / "m")
    assert loaded.settings == denoiser.settings
    assert torch.equal(loaded(blocks()).estimate, denoiser(blocks()).estimate)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_the_implicit_gradient_of_any_prior_is_the_unrolled_one(prior: PriorSettings) -> None:
    solver = Picard(iterations=200, tolerance=0)
    gradients = []
    for adjoint in (Unrolled(), Implicit(solver=solver)):
        denoiser = model(solver=solver, adjoint=adjoint, b=0.5, prior=prior).double()
        (denoiser(blocks(1, 8).double()).estimate ** 2).mean().backward()
        gradients.append([p.grad for p in denoiser.parameters()])
    for unrolled, implicit in zip(*gradients, strict=True):
        torch.testing.assert_close(implicit, unrolled, rtol=1e-6, atol=1e-10)


def test_a_noise_map_is_the_noise_level_of_the_noisy_block() -> None:
    noise = torch.randn(3, BANDS, 60, 61, generator=torch.Generator().manual_seed(5))
    noisy = 0.5 + noise * torch.tensor([0.02, 0.1, 0.3])[:, None, None, None]
    noisy[0, :, :20] = 0.0  # no data
    found = noise_level(noisy)
    torch.testing.assert_close(found, torch.tensor([0.02, 0.1, 0.3]), rtol=0.05, atol=0)
    for block, level in zip(noisy, found, strict=True):
        assert estimate_sigma(block.numpy()).mean() == pytest.approx(level.item(), rel=1e-2)
    settings = CnnSettings(layers=2, filters=4, noise_map=True)
    cnn = Cnn(BANDS, settings)
    assert not torch.equal(
        cnn.network(noisy, cnn.weights(), found[:, None]),
        cnn.network(noisy, cnn.weights(), 2 * found[:, None]),
    )


def test_the_recurrent_prior_sees_bands_on_one_side_per_layer() -> None:
    prior = Qrnn3d(Qrnn3dSettings(kind="qrnn3d", layers=2, filters=3, residual=False))
    x = blocks(1, 6).requires_grad_()
    prior(x)[0, 4].sum().backward()
    assert x.grad is not None
    reached = x.grad[0].abs().sum((1, 2)) > 0
    # One recurrence forwards, and two convolutions that look one band ahead each.
    assert reached.tolist() == [True] * 7 + [False] * 2


def test_deep_unrolling_and_equilibrium_have_the_same_gradient_at_convergence() -> None:
    noisy = blocks(2, 12).double()
    gradients = []
    solver = Picard(iterations=300, tolerance=0)
    for adjoint in (Unrolled(), Implicit(solver=solver)):
        denoiser = model(solver=solver, adjoint=adjoint, b=1.0).double()
        (denoiser(noisy).estimate ** 2).mean().backward()
        gradients.append([p.grad for p in denoiser.parameters()])
    for unrolled, implicit in zip(*gradients, strict=True):
        torch.testing.assert_close(implicit, unrolled, rtol=1e-6, atol=1e-10)


def test_the_residual_prior_is_the_identity_minus_the_cnn() -> None:
    settings = CnnSettings(layers=2, filters=4)
    direct = Cnn(BANDS, CnnSettings(layers=2, filters=4, residual=False))
    residual = Cnn(BANDS, settings)
    residual.load_state_dict(direct.state_dict())
    x = blocks(1)
    torch.testing.assert_close(residual(x), x - direct(x))


def test_kernel_norm_bounds_the_reshaped_kernel_only() -> None:
    prior = Cnn(BANDS, CnnSettings(layers=2, filters=8, norm="kernel"))
    prior.advance_power_iteration(200)
    for kernel in prior.weights():
        assert torch.linalg.matrix_norm(kernel.flatten(1), 2).item() == pytest.approx(1.0, abs=1e-4)
    # A box kernel of reshaped norm 1 amplifies a constant image three times.
    box = torch.full((1, 1, 3, 3), 1 / 3)
    assert torch.nn.functional.conv2d(torch.ones(1, 1, 50, 50), box, padding=1).max().item() == pytest.approx(
        3.0
    )


def test_conv_norm_bounds_the_convolution() -> None:
    prior = Cnn(3, CnnSettings(layers=2, filters=4, norm="conv"))
    prior.advance_power_iteration(300)
    for kernel in prior.weights():
        x = torch.randn(1, kernel.shape[1], 60, 60, generator=torch.Generator().manual_seed(0))
        for _ in range(300):
            x = torch.nn.functional.conv_transpose2d(
                torch.nn.functional.conv2d(x, kernel, padding=1), kernel, padding=1
            )
            gain = torch.linalg.vector_norm(x)
            x = x / gain
        assert gain.sqrt().item() == pytest.approx(1.0, abs=5e-3)


def test_weights_change_only_when_told() -> None:
    denoiser = model().train()
    before = {k: v.clone() for k, v in denoiser.state_dict().items()}
    denoiser(blocks(2)).estimate.sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in denoiser.state_dict().items())


def test_the_four_models_train_every_parameter() -> None:
    for map_ in ("fast", "full"):
        for solver, adjoint in ((Picard(iterations=3, tolerance=0), Unrolled()), (Anderson(), Implicit())):
            denoiser = model(map=map_, solver=solver, adjoint=adjoint, learn_dictionary=True)
            denoiser(blocks(2)).estimate.square().mean().backward()
            names = {name for name, p in denoiser.named_parameters() if p.grad is None or not p.grad.any()}
            assert names == set()
            assert set(denoiser.scalars) == ({"log_b"} if map_ == "fast" else {"log_b", "log_mu"})


def test_after_a_step_atoms_have_unit_norm_and_the_papers_b_is_at_most_1() -> None:
    denoiser = model(map="full", identity="paper", b=0.9, learn_dictionary=True)
    with torch.no_grad():
        denoiser.log_b.fill_(2.0)
        denoiser.atoms.mul_(3.0)
    denoiser.after_step()
    torch.testing.assert_close(torch.linalg.vector_norm(denoiser.atoms, dim=0), torch.ones(ATOMS))
    assert denoiser.b.item() == pytest.approx(1.0)


def test_the_papers_identity_term_is_refused_for_a_large_b() -> None:
    with pytest.raises(ValueError, match=r"identity=paper diverges for b > 1.*got b=2.0.*identity=hqs"):
        small(map="full", identity="paper", b=2.0)


def test_a_support_of_all_bands_is_refused() -> None:
    with pytest.raises(ValueError, match=r"below the number of bands \(9\).*got 9; set model.support.size"):
        SparseDenoiser(small(support=SupportSettings(size=9)), dictionary())


def test_a_model_file_gives_back_the_model(tmp_path: Path) -> None:
    denoiser = model(solver=Picard(iterations=7), adjoint=Unrolled()).eval()
    save_model(denoiser, tmp_path / "m", {"a": 1})
    first = (tmp_path / "m/model.safetensors").read_bytes(), (tmp_path / "m/model.json").read_bytes()
    save_model(denoiser, tmp_path / "m", {"a": 1})
    assert first == (
        (tmp_path / "m/model.safetensors").read_bytes(),
        (tmp_path / "m/model.json").read_bytes(),
    )
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert stat.S_IMODE((tmp_path / "m/model.safetensors").stat().st_mode) & 0o044 == 0o044
    loaded = load_model(tmp_path / "m")
    assert loaded.settings == denoiser.settings
    assert torch.equal(loaded(blocks()).estimate, denoiser(blocks()).estimate)


def test_damaged_model_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no model.json in"):
        load_model(tmp_path)
    save_model(model(), tmp_path / "m", {})
    weights, card = tmp_path / "m/model.safetensors", tmp_path / "m/model.json"
    good = weights.read_bytes()
    weights.write_bytes(good[:-8] + b"\0" * 8)
    with pytest.raises(ModelFileError, match="sha256 differs"):
        load_model(tmp_path / "m")
    weights.write_bytes(good)
    content = json.loads(card.read_text())
    content["settings"]["solver"]["kind"] = "newton"
    card.write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match="settings are not those of a model"):
        load_model(tmp_path / "m")
    for version, advice in ((99, "update hpcdeq"), (0, "export or train it again with this version")):
        card.write_text(json.dumps(content | {"version": version}))
        with pytest.raises(ModelFileError, match=rf"{version}; this version reads .*: {advice}"):
            load_model(tmp_path / "m")
    card.write_text("{")
    with pytest.raises(ModelFileError, match="is not a model card"):
        load_model(tmp_path / "m")


def test_a_dictionary_file_gives_back_the_dictionary(tmp_path: Path) -> None:
    save_dictionary(dictionary(), tmp_path / "d.safetensors", {"scenes": ["a"]})
    assert torch.equal(load_dictionary(tmp_path / "d.safetensors"), dictionary())
    (tmp_path / "x").write_bytes(b"not a dictionary")
    with pytest.raises(ModelFileError, match="is not a dictionary"):
        load_dictionary(tmp_path / "x")
    with pytest.raises(ModelFileError, match="no dictionary at"):
        load_dictionary(tmp_path / "y")


@pytest.mark.parametrize(
    "prior", [CnnSettings(layers=3, filters=8, norm="conv"), Qrnn3dSettings(kind="qrnn3d", filters=4)]
)
@pytest.mark.parametrize("map_", ["fast", "full"])
@pytest.mark.parametrize("adjoint", [Unrolled(), Implicit(solver=Picard(iterations=15, tolerance=0))])
def test_a_prior_in_16_bits_learns_by_nearly_the_same_float32_gradient(
    prior: PriorSettings, map_: str, adjoint: Unrolled | Implicit
) -> None:
    solver = Picard(iterations=15, tolerance=0)
    denoiser = model(map=map_, prior=prior, b=1.0, solver=solver, adjoint=adjoint)
    clean = blocks(2)
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(4))
    gradients = []
    for precision in (torch.float32, torch.bfloat16):
        denoiser.prior_dtype = precision
        loss = (denoiser(noisy).estimate - clean).square().mean()
        parameters = [p for p in denoiser.parameters() if p.requires_grad and p is not denoiser.log_b]
        if map_ == "full":
            parameters = [p for p in parameters if p is not denoiser.log_mu]
        found = torch.autograd.grad(loss, parameters)
        assert all(g.dtype == torch.float32 for g in found)
        gradients.append(torch.cat([g.flatten() for g in found]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert not torch.equal(*gradients), "it did compute in 16 bits"
