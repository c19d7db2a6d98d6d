"""A GPU gives what a CPU gives: estimates, gradients, steps of training, and whole scenes. Skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcdeq.archive import Archive
from hpcdeq.config import load_train_config
from hpcdeq.inference import DenoiseSettings, denoise_array
from hpcdeq.models import ModelSettings, SparseDenoiser, load_model
from hpcdeq.models.cnn import CnnSettings
from hpcdeq.solvers import Anderson, Implicit, Picard, Unrolled, iteration, replay
from hpcdeq.training import train
from tests.conftest import smooth_scene

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")

BANDS = 16
DU = ModelSettings(
    block=20,
    b=2.0,
    solver=Picard(iterations=5, tolerance=0.0),
    adjoint=Unrolled(),
    prior=CnnSettings(filters=16),
)
DEQ = replace(
    DU,
    solver=Anderson(iterations=30, tolerance=1e-6),
    adjoint=Implicit(solver=Anderson(iterations=30, tolerance=1e-6)),
)
KINDS = {
    "du-fast": DU,
    "deq-fast": DEQ,
    "du-full": replace(DU, map="full"),
    "deq-full": replace(DEQ, map="full"),
    "prior": replace(DU, map="prior"),
    "told": replace(DEQ, prior=CnnSettings(filters=16, noise_map=True)),
    "filtered": replace(DEQ, prefilter="wiener"),
}


@pytest.fixture(autouse=True)
def exact_products() -> None:
    """As on the CPU: TF32 keeps 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def a_model(kind: str) -> SparseDenoiser:
    torch.manual_seed(3)
    atoms = torch.randn(BANDS, 40)
    model = SparseDenoiser(KINDS[kind], atoms / torch.linalg.vector_norm(atoms, dim=0))
    return model.eval()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.cpu() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_and_gradients_are_those_of_the_cpu(kind: str) -> None:
    noisy = (
        torch.from_numpy(smooth_scene(1, BANDS, 20, 40)).unfold(2, 20, 20).permute(2, 0, 1, 3).contiguous()
    )
    found = {}
    for device in ("cpu", "cuda"):
        model = a_model(kind).to(device)
        estimate = model(noisy.to(device)).estimate
        estimate.square().mean().backward()
        gradients = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        found[device] = estimate.detach(), gradients
    assert relative(found["cuda"][0], found["cpu"][0]) < 1e-4
    assert found["cuda"][1].keys() == found["cpu"][1].keys()
    for name, gradient in found["cpu"][1].items():
        assert relative(found["cuda"][1][name], gradient) < 1e-2, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_is_denoised_as_on_the_cpu(kind: str) -> None:
    scene = smooth_scene(2, BANDS, 50, 61)
    noisy = scene + np.random.default_rng(0).normal(0, 0.1, scene.shape).astype(np.float32)
    model = a_model(kind)
    on = {
        device: denoise_array(model, noisy, DenoiseSettings(device=device, batch=4))
        for device in ("cpu", "cuda")
    }
    # The codes of a full map converge slowly: its solves end at 30 iterations, each rounded in its own way.
    assert np.abs(on["cuda"] - on["cpu"]).max() < (2e-3 if kind == "deq-full" else 1e-4)


def test_a_batch_on_the_gpu_always_has_one_shape_so_its_size_changes_little() -> None:
    scene = smooth_scene(2, BANDS, 50, 61)
    model = a_model("deq-fast")
    a, b = (denoise_array(model, scene, DenoiseSettings(device="cuda", batch=batch)) for batch in (3, 16))
    assert np.abs(a - b).max() < 1e-5


def test_steps_of_training_are_those_of_the_cpu(archive: Archive, tmp_path: Path) -> None:
    from_cpu, from_gpu = (
        load_model(
            train(
                load_train_config(
                    None,
                    [
                        f"data.train={archive.path}",
                        f"run={tmp_path / device}",
                        f"device={device}",
                        "data.batch=4",
                        "data.val_blocks=2",
                        "dictionary.atoms=32",
                        "model.block=16",
                        "model.support.size=3",
                        "model.prior.filters=8",
                        "training.pretrain_steps=3",
                        "training.steps=3",
                        "training.support_sizes=[]",
                    ],
                )
            )
        )
        for device in ("cpu", "cuda")
    )
    for name, value in from_cpu.state_dict().items():
        assert relative(from_gpu.state_dict()[name], value) < 1e-2, name


@pytest.mark.filterwarnings("error:solves are not replayed")
@pytest.mark.parametrize("kind", ["du-fast", "deq-fast", "du-full", "deq-full", "told"])
def test_replayed_solves_give_what_solves_give(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of DU models are unrolled, and never replayed."""
    model = a_model(kind).cuda()
    found: list[list[torch.Tensor]] = []
    for replayed in (True, False):
        if not replayed:
            monkeypatch.setattr(iteration, "_replay", lambda *_: None)
        found.append([])
        for seed in range(4):
            noisy = torch.rand(3, BANDS, 20, 20, generator=torch.Generator().manual_seed(seed)).cuda()
            with torch.no_grad():
                found[-1].append(model(noisy).estimate)
            model.zero_grad()
            model(noisy).estimate.square().mean().backward()
            found[-1] += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    of_model = iteration._RECORDINGS._kept[model.prior]
    assert sum(isinstance(x, replay.Recording) for x in of_model.values()) == (1 if kind[:2] == "du" else 2)
    for a, b in zip(*found, strict=True):
        assert relative(a, b.cpu()) < 1e-3
