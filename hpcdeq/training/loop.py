"""The training loop of one process: two phases, validation, checkpoints, and what to do when numbers break."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hpcdeq.cluster.device import choose_device
from hpcdeq.cluster.signals import StopRequest, stop_requests
from hpcdeq.config import TrainConfig
from hpcdeq.console import Bar, say
from hpcdeq.errors import PreemptedError, TrainingError
from hpcdeq.metrics import mpsnr
from hpcdeq.models import save_model
from hpcdeq.noise import generator
from hpcdeq.solvers import Solution, Unrolled
from hpcdeq.training import checkpoints, data, start
from hpcdeq.training.export import provenance
from hpcdeq.training.log import RunLog

PHASES = ("pretrain", "train")
_BAD_STEPS = 5  # skipped steps in a row before the last checkpoint is reloaded
_MAX_ROLLBACKS = 5
_ROLLBACK_LR = 0.5
_PROBED_BLOCKS = 4  # the spectral radius is that of the worst of these validation blocks
_PROBE = 13  # what a key is for


@dataclass
class Position:
    """Where a run stands: all of its state that is not a tensor."""

    phase: int = 0
    step: int = 0
    """Steps of the phase that were taken or skipped."""
    batches: int = 0
    """Batches of the run that were consumed: the position in the data."""
    skipped: int = 0
    bad_in_a_row: int = 0
    rollbacks: int = 0
    best: str | None = None
    """Name of the best checkpoint of the last phase that has steps."""
    best_psnr: float = float("-inf")


def train(config: TrainConfig) -> Path:
    """Train a model, or go on with a run that was interrupted.

    Parameters
    ----------
    config
        Everything that decides the result. ``config.run`` is the folder of the run.

    Returns
    -------
    Path
        Folder of the model that was best on the validation blocks, ``config.run / "model"``.

    Raises
    ------
    ConfigError
        If the folder holds a run with another configuration, or the data do not fit it.
    TrainingError
        If training diverges again and again.
    PreemptedError
        If a signal asked to stop (SIGUSR1, SIGUSR2, SIGTERM): after the step it came in, with a checkpoint of that step.
    """
    run = start.open_run(config)
    train_scenes, val_scenes = data.split(config)
    trainer = _Trainer(config, run, train_scenes, val_scenes)
    try:
        with stop_requests() as stop:
            for phase in range(trainer.at.phase, len(PHASES)):
                if trainer.steps(phase):
                    trainer.run_phase(phase, stop)
    finally:
        trainer.log.close()
    return trainer.export()


class _Trainer:
    """The state of a run in one process, and the steps that change it."""

    def __init__(
        self, config: TrainConfig, run: Path, train_scenes: list[Any], val_scenes: list[Any]
    ) -> None:
        self.config, self.settings, self.run = config, config.training, run
        self.device = choose_device(config.device)
        self.scenes = {scene.name: scene.content_sha256 for scene in train_scenes}
        self.stream = data.training_stream(config, train_scenes)
        self.validation = data.validation_batches(config, val_scenes)
        self.model = start.first_model(config, train_scenes, run).to(self.device)
        self.at = Position()
        self.optimizer = self._new_optimizer()
        self.adjoint: Solution | None = None
        latest = checkpoints.latest(run / "checkpoints")
        if latest is not None:
            self._load(latest)
            say(f"continuing {run} from checkpoint {latest.name}")
        self.log = RunLog(run, self.at.batches, self.settings.tensorboard)

    def run_phase(self, phase: int, stop: StopRequest) -> None:
        """Train one phase to its last step, or until asked to stop."""
        if phase != self.at.phase:
            self.at = Position(
                phase=phase, batches=self.at.batches, skipped=self.at.skipped, rollbacks=self.at.rollbacks
            )
            self.optimizer = self._new_optimizer()
        steps = self.steps(phase)
        if self.at.best is None:
            self._validate()  # how the phase begins; and there is a checkpoint to fall back on
        with Bar(PHASES[phase], steps, self.at.step) as bar:
            batches = self._batches()
            while self.at.step < steps:
                note = self._step(*next(batches))
                bar.done = self.at.step  # a roll-back goes back
                bar.note(note)
                if stop:
                    self._stop(stop)

    def export(self) -> Path:
        """Write the best model of the last phase that was trained."""
        best = self.at.best
        if best is not None:
            state = checkpoints.load(self.run / "checkpoints" / best)
            self.model.load_state_dict(state["model"])
        by_support = self._choose_support()
        folder = self.run / "model"
        written = provenance(self.config, best, self.scenes, asdict(self.at))
        save_model(self.model, folder, written | {"validation_psnr_by_support_size": by_support})
        return folder

    def steps(self, phase: int) -> int:
        """Return how many steps a phase has."""
        length = (self.settings.pretrain_steps, self.settings.steps)[phase]
        if isinstance(length, int):
            return length
        return int(length.split()[0]) * self.stream.batches_per_epoch

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """(clean, noisy, seconds waited) from where the run stands."""
        loader = iter(data.torch_loader(self.stream, self.at.batches, pin=self.device.type == "cuda"))
        while True:
            begin = time.perf_counter()
            clean, noisy = next(loader)
            yield (
                clean.to(self.device, non_blocking=True),
                noisy.to(self.device, non_blocking=True),
                time.perf_counter() - begin,
            )

    def _step(self, clean: Tensor, noisy: Tensor, waited: float) -> str:
        """Take one step, or skip it if it is not finite or not solved; log, validate and checkpoint when due."""
        begin = time.perf_counter()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        estimate, solution, jacobian = self._forward(noisy, self._probe())
        loss = F.mse_loss(estimate, clean)
        (loss if jacobian is None else loss + self.settings.jacobian_weight * jacobian).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        sound = bool(torch.isfinite(loss) & torch.isfinite(norm)) and self._solved(solution)
        if sound:
            self.optimizer.step()
            self.model.after_step()
        self.at.step += 1
        self.at.batches += 1
        self.at.skipped += not sound
        self.at.bad_in_a_row = 0 if sound else self.at.bad_in_a_row + 1
        if self.at.bad_in_a_row >= _BAD_STEPS:
            self._roll_back()
            return "rolled back"
        if self.at.step % self.settings.log_every == 0:
            self._log_step(loss, norm, solution, jacobian, time.perf_counter() - begin, waited)
        last = self.at.step == self.steps(self.at.phase)
        if self.at.step % self.settings.validate_every == 0 or last:
            self._validate()
        elif self.at.step % self.settings.checkpoint_every == 0:
            self._commit()
        return f"loss {loss.item():.3e}"

    def _forward(
        self, noisy: Tensor, probe: torch.Generator | None = None
    ) -> tuple[Tensor, Solution | None, Tensor | None]:
        if PHASES[self.at.phase] == "pretrain":
            return self.model.prior(noisy), None, None
        denoised = self.model(noisy, self._keep_adjoint, probe)
        return denoised.estimate, denoised.solution, denoised.jacobian

    def _probe(self) -> torch.Generator | None:
        """Random numbers of this step's Jacobian penalty: a function of its place in the run, as all that is random."""
        if self.settings.jacobian_weight == 0:
            return None
        return torch.Generator().manual_seed(
            int(generator(self.config.seed, self.at.batches, _PROBE).integers(1 << 62))
        )

    def _solved(self, solution: Solution | None) -> bool:
        """Whether the fixed points are solved well enough for an implicit gradient, which holds at fixed points only."""
        if solution is None or isinstance(self.config.model.adjoint, Unrolled):
            return True
        return solution.residual.mean().item() <= self.settings.largest_residual

    def _keep_adjoint(self, solution: Solution) -> None:
        self.adjoint = solution

    def _log_step(
        self,
        loss: Tensor,
        norm: Tensor,
        solution: Solution | None,
        jacobian: Tensor | None,
        seconds: float,
        waited: float,
    ) -> None:
        values: dict[str, Any] = {
            "phase": PHASES[self.at.phase],
            "step": self.at.step,
            "loss": loss.item(),
            "gradient_norm": norm.item(),
            **self._scalars(),
            "skipped": self.at.skipped,
            "step_seconds": seconds,
            "data_seconds": waited,
        }
        if jacobian is not None:
            values["jacobian"] = jacobian.item()
        for name, solved in (("forward", solution), ("backward", self.adjoint)):
            if solved is not None:
                values[f"{name}_residual"] = solved.residual.mean().item()
                values[f"{name}_iterations"] = solved.iterations.float().mean().item()
        self.log.write(self.at.batches, values)

    def _scalars(self) -> dict[str, float]:
        return {name.removeprefix("log_"): value.exp().item() for name, value in self.model.scalars.items()}

    @torch.no_grad()
    def _validate(self) -> None:
        """Score the validation blocks, see how well the map converges on them, remember the best, commit a checkpoint."""
        psnr, residual = self._score()
        if psnr > self.at.best_psnr:
            self.at.best, self.at.best_psnr = self._name(), psnr
        values = {"validation_psnr": psnr}
        if PHASES[self.at.phase] == "train" and self.config.model.map != "prior":
            probed = self.validation[0][1][:_PROBED_BLOCKS].to(self.device)
            values |= {
                "validation_residual": residual,
                "spectral_radius": self.model.spectral_radius(probed).max().item(),
                **self._scalars(),
            }
        phase = PHASES[self.at.phase]
        self.log.write(self.at.batches, {"phase": phase, "step": self.at.step, **values})
        state = "".join(
            f", {name.replace('_', ' ')} {value:.3g}"
            for name, value in values.items()
            if name != "validation_psnr"
        )
        say(f"{phase} step {self.at.step}: validation {psnr:.2f} dB (best {self.at.best_psnr:.2f}){state}")
        self._commit()

    @torch.no_grad()
    def _score(self) -> tuple[float, float]:
        """PSNR and mean residual on the validation blocks, which are scored as one scene: as scenes are when they are evaluated.

        A mean of the PSNR of each block would be ruled by the smooth ones.
        """
        self.model.eval()
        references, estimates = [], []
        residuals: list[float] = []
        for clean, noisy in self.validation:
            estimate, solution, _ = self._forward(noisy.to(self.device))
            references.append(clean)
            estimates.append(estimate.cpu())
            residuals += [0.0] if solution is None else solution.residual.tolist()
        # (block, band, y, x) to (band, block * y, x)
        scene, denoised = (torch.cat(x).transpose(0, 1).flatten(1, 2) for x in (references, estimates))
        return mpsnr(scene, denoised), sum(residuals) / len(residuals)

    def _choose_support(self) -> dict[int, float]:
        """Give a trained fast map the number of atoms that is best on the validation blocks; PSNR by number.

        More atoms represent the block better and let more noise through; what is best is known only with the prior at hand.
        """
        trained = self.config.model.support.size
        largest = min(self.model.bands - 1, self.model.atoms.shape[1])
        sizes = [n for n in self.settings.support_sizes if n <= largest and n != trained]
        if self.config.model.map != "fast" or PHASES[self.at.phase] != "train" or not sizes:
            return {}
        psnr = {}
        for size in [trained, *sizes]:
            self.model.set_support_size(size)
            psnr[size], _ = self._score()
        best = max(psnr, key=psnr.__getitem__)
        self.model.set_support_size(best)
        say(
            f"support of {best} atoms a block: "
            + ", ".join(f"{n}: {psnr[n]:.2f}" for n in sorted(psnr))
            + " dB"
        )
        return psnr

    def _stop(self, stop: StopRequest) -> None:
        """Commit this step, unless it just was, and end."""
        assert stop.signal is not None
        if not (self.run / "checkpoints" / self._name()).exists():
            self._commit()
        raise PreemptedError(
            f"{stop.signal.name} came: stopped after step {self.at.step} of {PHASES[self.at.phase]}, which is in a checkpoint; "
            "run the same command again to go on",
            stop.signal,
        )

    def _name(self) -> str:
        return checkpoints.name_of(self.at.phase, self.at.rollbacks, self.at.step)

    def _commit(self) -> None:
        folder = self.run / "checkpoints"
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": asdict(self.at),
            "scenes": self.scenes,
        }
        checkpoints.commit(folder, self._name(), state)
        checkpoints.prune(folder, self.settings.keep, self.at.best)

    def _load(self, checkpoint: Path) -> None:
        state = checkpoints.load(checkpoint)
        self.at = Position(**state["position"])
        self.model.load_state_dict(state["model"])
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])

    def _roll_back(self) -> None:
        """Return to the last checkpoint with a smaller learning rate, and go on with new data."""
        if self.at.rollbacks >= _MAX_ROLLBACKS:
            raise TrainingError(
                f"training diverged: {_BAD_STEPS} steps in a row were not finite or not solved after {_MAX_ROLLBACKS} roll-backs, "
                f"each with half the learning rate; try model.prior.norm=kernel, a smaller training.lr or training.clip"
            )
        failed = self.at
        latest = checkpoints.latest(self.run / "checkpoints")
        assert latest is not None, "a phase begins with a checkpoint"
        self._load(latest)
        self.at.batches, self.at.skipped, self.at.rollbacks = (
            failed.batches,
            failed.skipped,
            failed.rollbacks + 1,
        )
        for group in self.optimizer.param_groups:
            group["lr"] *= _ROLLBACK_LR
        say(
            f"{_BAD_STEPS} steps in a row were not finite or not solved: back to {latest.name} with half the learning rate"
        )
        self._commit()

    def _new_optimizer(self) -> torch.optim.Adam:
        lr = (self.settings.pretrain_lr, self.settings.lr)[self.at.phase]
        groups = [
            {"params": list(self.model.prior.parameters()), "lr": lr},
            {"params": list(self.model.scalars.values()), "lr": lr * self.settings.lr_scalars_factor},
        ]
        if self.config.model.learn_dictionary:
            groups.append({"params": [self.model.atoms], "lr": lr})
        return torch.optim.Adam(groups)
