"""The training loop: two phases, checkpoints, and what to do when numbers break, alone or in many processes."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from hpcdeq.cluster.device import choose_device
from hpcdeq.cluster.group import Team, process_group
from hpcdeq.cluster.ranks import place_of
from hpcdeq.cluster.signals import StopRequest, stop_requests
from hpcdeq.config import DeepSpeedConfig, TrainConfig
from hpcdeq.console import Bar, say, silence
from hpcdeq.errors import PreemptedError, TrainingError
from hpcdeq.models import SparseDenoiser, save_model
from hpcdeq.timing import part
from hpcdeq.training import checkpoints, data, start
from hpcdeq.training.average import average_of
from hpcdeq.training.export import provenance
from hpcdeq.training.log import RunLog
from hpcdeq.training.objective import PHASES
from hpcdeq.training.stepper import Stepper, Taken
from hpcdeq.training.validation import Validation

_BAD_STEPS = 5  # skipped steps in a row before the last checkpoint is reloaded
_MAX_ROLLBACKS = 5
_ROLLBACK_LR = 0.5
_WARM_UP = 0.05  # of a phase, in which the rates of the cosine schedule rise from 0


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
        If the folder holds a run with another configuration, the data do not fit it, or a batch must not be divided and is.
    TrainingError
        If training diverges again and again.
    FencedError
        If another copy of this run has taken over.
    PeerError
        If another process of the run failed or vanished.
    PreemptedError
        If a signal asked to stop (SIGUSR1, SIGUSR2, SIGTERM): after the step it came in, with a checkpoint of that step.
    """
    place = place_of(os.environ)
    if place.rank > 0:
        silence()
    device = choose_device(config.device, place.local_rank)
    needs_group = isinstance(config.training.engine, DeepSpeedConfig)
    with process_group(place, device, alone=needs_group) as team, stop_requests() as stop:
        start.check_batch_norm(config, team.world_size)
        run = team.first(lambda: start.open_run(config))
        trainer = Trainer(config, run, team)
        try:
            for phase in range(trainer.at.phase, len(PHASES)):
                if trainer.steps(phase):
                    trainer.run_phase(phase, stop)
            return trainer.export()
        finally:
            trainer.close()


class Trainer:
    """The state of a run in one of its processes, and the steps that change it, which all take together.

    Parameters
    ----------
    config
        The run's configuration.
    run
        Its folder, from `hpcdeq.training.start.open_run`.
    team
        The processes.
    """

    def __init__(self, config: TrainConfig, run: Path, team: Team) -> None:
        self.config, self.settings, self.run, self.team = config, config.training, run, team
        train_scenes, val_scenes = data.split(config)
        self.scenes = start.learnt_from(config, train_scenes)
        self.stream = data.training_stream(config, train_scenes, team)
        blocks = data.validation_batches(config, val_scenes)
        if config.training.start_from is None:  # learnt by one process, read by all
            team.first(lambda: data.dictionary_of(config, train_scenes, run))
        self.model = start.first_model(config, train_scenes, run).to(team.device)
        self.model.prior_dtype = getattr(torch, self.settings.precision)
        self.average = average_of(self.model, self.settings.ema) if self.settings.ema else None
        self.validated = self.model if self.average is None else cast(SparseDenoiser, self.average.module)
        """What is validated and written: the model, or the average of what it was."""
        self.at = Position()
        self.stepper = Stepper(config, self.model, team)
        self.validation = Validation(blocks, self.validated, team)
        folder = run / "checkpoints"
        self.attempt = team.first(lambda: checkpoints.take_over(folder, os.environ))
        latest = team.first(lambda: checkpoints.latest(folder))
        if latest is None:
            self.stepper.begin(self.at.phase)
        else:
            self._load(latest)
            say(f"continuing {run} from checkpoint {latest.name}")
        tensorboard = self.settings.tensorboard
        self.log = RunLog(run, self.attempt, self.at.batches, tensorboard) if team.leads else None

    def close(self) -> None:
        """Close files, and leave nothing aside."""
        if self.log is not None:
            self.log.close()
        if self.team.leads:
            shutil.rmtree(self.attempt, ignore_errors=True)

    def run_phase(self, phase: int, stop: StopRequest) -> None:
        """Train one phase to its last step, or until asked to stop."""
        self.enter(phase)
        steps = self.steps(phase)
        if self.at.best is None:
            self._validate()  # how the phase begins; and there is a checkpoint to fall back on
        with Bar(PHASES[phase], steps, self.at.step) as bar, closing(self.batches()) as batches:
            while self.at.step < steps:
                note = self.step(*next(batches))
                bar.done = self.at.step  # a roll-back goes back
                bar.note(note)
                if self.team.any(bool(stop)):
                    self._stop(stop)

    def enter(self, phase: int) -> None:
        """Begin a phase, unless the run stands in it."""
        if phase != self.at.phase:
            self.at = Position(
                phase=phase, batches=self.at.batches, skipped=self.at.skipped, rollbacks=self.at.rollbacks
            )
            self.stepper.begin(self.at.phase)

    def export(self) -> Path:
        """Write the best model of the last phase that was trained; return its folder."""
        best = self.at.best
        if best is not None:
            self.validated.load_state_dict(self._read(self.run / "checkpoints" / best)["model"])
        tried: dict[str, Any] = {"validation_psnr_by_support_size": {}, "validation_psnr_by_tolerance": {}}
        if self.config.model.map != "prior" and PHASES[self.at.phase] == "train":
            if self.config.model.map == "fast":
                tried["validation_psnr_by_support_size"] = self.validation.choose_support(
                    self.settings.support_sizes, self.at.phase
                )
            tried["validation_psnr_by_tolerance"] = self.validation.choose_tolerance(
                self.settings.tolerances, self.at.phase
            )
        folder = self.run / "model"
        written = provenance(self.config, best, self.scenes, asdict(self.at))

        def write() -> None:
            checkpoints.check_attempt(self.attempt)
            aside = self.attempt / folder.name
            save_model(self.validated, aside, written | tried)
            checkpoints.publish(self.attempt, folder.name)

        self.team.first(write)
        return folder

    def steps(self, phase: int) -> int:
        """Return how many steps a phase has."""
        length = (self.settings.pretrain_steps, self.settings.steps)[phase]
        if isinstance(length, int):
            return length
        return int(length.split()[0]) * self.stream.batches_per_epoch

    def batches(self) -> Generator[tuple[Tensor, Tensor, int, float]]:
        """This process's part of the batches from where the run stands: clean, noisy, blocks of the whole, seconds waited.

        Endless; close it, as threads read ahead for it.
        """
        device = self.team.device
        loader = iter(data.torch_loader(self.stream, self.at.batches, pin=device.type == "cuda"))
        while True:
            begin = time.perf_counter()
            with part("data"):
                clean, noisy, planned = next(loader)
            clean, noisy = (x.to(device, non_blocking=True) for x in (clean, noisy))
            yield clean, noisy, planned, time.perf_counter() - begin

    def step(self, clean: Tensor, noisy: Tensor, planned: int, waited: float) -> str:
        """Take one step, or skip it if it is not finite or not solved; log, validate and checkpoint when due."""
        begin = time.perf_counter()
        lr_factor = self._lr_factor()
        taken = self.stepper.take(clean, noisy, planned, self.at.batches, lr_factor)
        sound = math.isfinite(taken.norm)
        if sound and self.average is not None:
            self.average.update_parameters(self.model)
            self.validated.after_step()
        self.at.step += 1
        self.at.batches += 1
        self.at.skipped += not sound
        self.at.bad_in_a_row = 0 if sound else self.at.bad_in_a_row + 1
        if self.at.bad_in_a_row >= _BAD_STEPS:
            self._roll_back()
            return "rolled back"
        if self.at.step % self.settings.log_every == 0:
            self._log_step(taken, lr_factor, time.perf_counter() - begin, waited)
        last = self.at.step == self.steps(self.at.phase)
        if self.at.step % self.settings.validate_every == 0 or last:
            self._validate()
        elif self.at.step % self.settings.checkpoint_every == 0:
            self._commit()
        return f"loss {taken.loss:.3e}"

    def _lr_factor(self) -> float:
        """What the learning rates are multiplied by in this step."""
        factor = _ROLLBACK_LR**self.at.rollbacks
        if self.settings.schedule == "cosine":
            done = min(1.0, self.at.step / max(1, self.steps(self.at.phase)))
            factor *= min(1.0, done / _WARM_UP) * 0.5 * (1.0 + math.cos(math.pi * done))
        return factor

    def _log_step(self, taken: Taken, lr_factor: float, seconds: float, waited: float) -> None:
        values: dict[str, Any] = {
            "loss": taken.loss,
            "gradient_norm": taken.norm,
            "lr_factor": lr_factor,
            **_scalars(self.model),
            "skipped": self.at.skipped,
            "step_seconds": seconds,
            "data_seconds": waited,
        }
        if taken.jacobian is not None:
            values["jacobian"] = taken.jacobian.item()
        for name, solved in self.stepper.solutions.items():
            values[f"{name}_residual"] = solved.residual.mean().item()
            values[f"{name}_iterations"] = solved.iterations.float().mean().item()
        self._write(values)

    def _write(self, values: dict[str, Any]) -> None:
        if self.log is not None:
            place = {"phase": PHASES[self.at.phase], "step": self.at.step}
            self.log.write(self.at.batches, place | values)

    @torch.no_grad()
    def _validate(self) -> None:
        """Score the validation blocks, see how well the map converges on them, remember the best, commit a checkpoint."""
        psnr, residual = self.validation.score(self.at.phase)
        if psnr > self.at.best_psnr:
            self.at.best, self.at.best_psnr = self._name(), psnr
        values = {"validation_psnr": psnr}
        if PHASES[self.at.phase] == "train" and self.config.model.map != "prior":
            values |= {
                "validation_residual": residual,
                "spectral_radius": self.validation.spectral_radius(),
                **_scalars(self.validated),
            }
        self._write(values)
        state = "".join(
            f", {name.replace('_', ' ')} {value:.3g}"
            for name, value in values.items()
            if name != "validation_psnr"
        )
        say(
            f"{PHASES[self.at.phase]} step {self.at.step}: validation {psnr:.2f} dB (best {self.at.best_psnr:.2f}){state}"
        )
        self._commit()

    def _stop(self, stop: StopRequest) -> None:
        """Commit this step, unless it just was, and end."""
        name = self._name()
        if not self.team.first(lambda: (self.run / "checkpoints" / name).exists()):
            self._commit()
        asked = "a stop signal to another process" if stop.signal is None else stop.signal.name
        raise PreemptedError(
            f"{asked} came: stopped after step {self.at.step} of {PHASES[self.at.phase]}, which is in a checkpoint; "
            "run the same command again to go on"
        )

    def _name(self) -> str:
        return checkpoints.name_of(self.at.phase, self.at.rollbacks, self.at.step)

    def _commit(self) -> None:
        state = self.stepper.engine.state() | {
            "model": self.validated.state_dict(),
            "average": None if self.average is None else self._behind(self.average),
            "position": asdict(self.at),
            "scenes": self.scenes,
        }
        bad_chunks = sorted({line for lines in self.team.gather(self.stream.left_out) for line in lines})

        def write() -> None:
            checkpoints.commit(self.attempt, self._name(), state)
            checkpoints.prune(self.attempt, self.settings.keep, self.at.best)
            if bad_chunks:
                (self.run / "bad_chunks.txt").write_text("\n".join(bad_chunks) + "\n")

        self.team.first(write)

    def _behind(self, average: AveragedModel) -> dict[str, Any]:
        """What an average needs to go on, beside itself."""
        return {"of": self.model.state_dict(), "steps": int(average.n_averaged)}

    def _read(self, checkpoint: Path) -> dict[str, Any]:
        return self.team.first(lambda: checkpoints.load(checkpoint))

    def _load(self, checkpoint: Path) -> None:
        state = self._read(checkpoint)
        self.at = Position(**state["position"])
        self.validated.load_state_dict(state["model"])
        if self.average is not None:
            self.model.load_state_dict(state["average"]["of"])
            self.average.n_averaged.fill_(state["average"]["steps"])
        self.stepper.begin(self.at.phase, state)

    def _roll_back(self) -> None:
        """Return to the last checkpoint with a smaller learning rate, and go on with new data."""
        if self.at.rollbacks >= _MAX_ROLLBACKS:
            raise TrainingError(
                f"training diverged: {_BAD_STEPS} steps in a row were not finite or not solved after {_MAX_ROLLBACKS} roll-backs, "
                f"each with half the learning rate; try model.prior.norm=kernel, a smaller training.lr or training.clip"
            )
        failed = self.at
        latest = self.team.first(lambda: checkpoints.latest(self.attempt.parent))
        assert latest is not None, "a phase begins with a checkpoint"
        self._load(latest)
        self.at.batches, self.at.skipped, self.at.rollbacks = (
            failed.batches,
            failed.skipped,
            failed.rollbacks + 1,
        )
        say(
            f"{_BAD_STEPS} steps in a row were not finite or not solved: back to {latest.name} with half the learning rate"
        )
        self._commit()


def _scalars(model: SparseDenoiser) -> dict[str, float]:
    return {name.removeprefix("log_"): value.exp().item() for name, value in model.scalars.items()}
