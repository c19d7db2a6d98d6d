"""The training loop: two phases, validation, checkpoints, and what to do when numbers break, alone or in many processes."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpcdeq.cluster.device import choose_device
from hpcdeq.cluster.group import Team, process_group
from hpcdeq.cluster.ranks import place_of
from hpcdeq.cluster.signals import StopRequest, stop_requests
from hpcdeq.config import DeepSpeedConfig, TrainConfig
from hpcdeq.console import Bar, say, silence
from hpcdeq.errors import PreemptedError, TrainingError
from hpcdeq.models import save_model
from hpcdeq.noise import generator
from hpcdeq.solvers import Solution, Unrolled
from hpcdeq.timing import part
from hpcdeq.training import checkpoints, data, start
from hpcdeq.training.engines import Engine, new_engine
from hpcdeq.training.export import provenance
from hpcdeq.training.log import RunLog
from hpcdeq.training.objective import PHASES, Objective, Outcome

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
        self.validation = data.validation_batches(config, val_scenes)
        if config.training.start_from is None:  # learnt by one process, read by all
            team.first(lambda: data.dictionary_of(config, train_scenes, run))
        self.model = start.first_model(config, train_scenes, run).to(team.device)
        self.model.prior_dtype = getattr(torch, self.settings.precision)
        self.at = Position()
        self.solutions: dict[str, Solution] = {}
        """How this process's last blocks were solved, without states: ``forward``, and ``backward`` of an implicit gradient."""
        folder = run / "checkpoints"
        self.attempt = team.first(lambda: checkpoints.take_over(folder, os.environ))
        latest = team.first(lambda: checkpoints.latest(folder))
        if latest is None:
            self._start_engine()
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
        with Bar(PHASES[phase], steps, self.at.step) as bar:
            batches = self.batches()
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
            self._start_engine()

    def export(self) -> Path:
        """Write the best model of the last phase that was trained; return its folder."""
        best = self.at.best
        if best is not None:
            self.model.load_state_dict(self._read(self.run / "checkpoints" / best)["model"])
        by_support = self._choose_support()
        folder = self.run / "model"
        written = provenance(self.config, best, self.scenes, asdict(self.at))

        def write() -> None:
            checkpoints.check_attempt(self.attempt)
            aside = self.attempt / folder.name
            save_model(self.model, aside, written | {"validation_psnr_by_support_size": by_support})
            checkpoints.publish(self.attempt, folder.name)

        self.team.first(write)
        return folder

    def steps(self, phase: int) -> int:
        """Return how many steps a phase has."""
        length = (self.settings.pretrain_steps, self.settings.steps)[phase]
        if isinstance(length, int):
            return length
        return int(length.split()[0]) * self.stream.batches_per_epoch

    def batches(self) -> Iterator[tuple[Tensor, Tensor, int, float]]:
        """This process's part of the batches from where the run stands: clean, noisy, blocks of the whole, seconds waited."""
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
        self.model.train()
        most = -(-planned // self.team.world_size)  # blocks of a process
        size = min(self.config.data.micro_batch or most, most)
        probes = self._probes(planned)
        loss = 0.0
        for first in range(0, most, size):
            rows = slice(first, first + size)
            with self.engine.accumulating(last=first + size >= most):
                with part("forward"):
                    outcome = self._outcome(self.engine.objective, clean[rows], noisy[rows], probes[rows])
                share = len(clean[rows]) / planned
                told = self._tell(outcome, share, len(clean[rows]))
                loss += told[0].item()
                # A gradient that is not a number, so that no process takes the step, whatever its own blocks say.
                weight = share * self.team.world_size if self._solved(told) else float("nan")
                with part("backward"):
                    self.engine.backward(outcome.loss * weight)
        if outcome.solution is not None and len(clean[rows]):
            self._keep("forward", outcome.solution)
        with part("optimiser"):
            norm = self.engine.step()
        sound = math.isfinite(norm)
        self.at.step += 1
        self.at.batches += 1
        self.at.skipped += not sound
        self.at.bad_in_a_row = 0 if sound else self.at.bad_in_a_row + 1
        if self.at.bad_in_a_row >= _BAD_STEPS:
            self._roll_back()
            return "rolled back"
        if self.at.step % self.settings.log_every == 0:
            self._log_step(loss, norm, outcome.jacobian, time.perf_counter() - begin, waited)
        last = self.at.step == self.steps(self.at.phase)
        if self.at.step % self.settings.validate_every == 0 or last:
            self._validate()
        elif self.at.step % self.settings.checkpoint_every == 0:
            self._commit()
        return f"loss {loss:.3e}"

    def _outcome(
        self, objective: nn.Module, clean: Tensor, noisy: Tensor, probes: list[torch.Generator]
    ) -> Outcome:
        """Run the model on some blocks; on a grey one, which does not count, if there is none: all processes must take part."""
        if len(clean) == 0:
            size = self.config.model.block
            clean = noisy = torch.full((1, self.model.bands, size, size), 0.5, device=self.team.device)
            with_probe = self.settings.jacobian_weight > 0 and torch.is_grad_enabled()
            probes = [torch.Generator()] if with_probe else []
            self.model.eval()  # not in running averages either
        outcome: Outcome = objective(clean, noisy, probes or None, partial(self._keep, "backward"))
        return outcome

    def _tell(self, outcome: Outcome, share: float, blocks: int) -> Tensor:
        """Sums over the processes: weighted loss, residuals, blocks."""
        residual = 0.0 if outcome.solution is None else outcome.solution.residual.sum().item()
        mine = [outcome.loss.item() * share, residual if blocks else 0.0, float(blocks)]
        return self.team.sum(torch.tensor(mine, dtype=torch.float64))

    def _solved(self, told: Tensor) -> bool:
        """Whether the fixed points are solved well enough for an implicit gradient, which holds at fixed points only."""
        loss, residual, blocks = told.tolist()
        if not math.isfinite(loss):
            return False
        if isinstance(self.config.model.adjoint, Unrolled) or blocks == 0:
            return True
        return bool(residual <= self.settings.largest_residual * blocks)

    def _probes(self, planned: int) -> list[torch.Generator]:
        """Random numbers of the Jacobian penalty of this process's blocks: a function of their place in the run."""
        if self.settings.jacobian_weight == 0:
            return []
        rows = range(planned)[self.team.part(planned)]
        keys = (generator(self.config.seed, self.at.batches, row, _PROBE) for row in rows)
        return [torch.Generator().manual_seed(int(key.integers(1 << 62))) for key in keys]

    def _keep(self, name: str, solution: Solution) -> None:
        self.solutions[name] = replace(solution, state=torch.empty(0))  # which would hold the graph

    def _log_step(
        self,
        loss: float,
        norm: float,
        jacobian: Tensor | None,
        seconds: float,
        waited: float,
    ) -> None:
        values: dict[str, Any] = {
            "loss": loss,
            "gradient_norm": norm,
            **self._scalars(),
            "skipped": self.at.skipped,
            "step_seconds": seconds,
            "data_seconds": waited,
        }
        if jacobian is not None:
            values["jacobian"] = jacobian.item()
        for name, solved in self.solutions.items():
            values[f"{name}_residual"] = solved.residual.mean().item()
            values[f"{name}_iterations"] = solved.iterations.float().mean().item()
        self._write(values)

    def _write(self, values: dict[str, Any]) -> None:
        if self.log is not None:
            place = {"phase": PHASES[self.at.phase], "step": self.at.step}
            self.log.write(self.at.batches, place | values)

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
            probed = self.validation[0][1][:_PROBED_BLOCKS].to(self.team.device)
            values |= {
                "validation_residual": residual,
                "spectral_radius": self.model.spectral_radius(probed).max().item(),
                **self._scalars(),
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

    @torch.no_grad()
    def _score(self) -> tuple[float, float]:
        """PSNR and mean residual on the validation blocks, which are scored as one scene: as scenes are when they are evaluated.

        A mean of the PSNR of each block would be ruled by the smooth ones.
        """
        self.model.eval()
        errors = torch.zeros(self.model.bands, dtype=torch.float64)
        residual, blocks, pixels = 0.0, 0, 0
        for clean, noisy in self.validation:
            count = len(clean)
            rows = self.team.part(count)
            reference = clean[rows].to(self.team.device)
            outcome = self._outcome(self.objective, reference, noisy[rows].to(self.team.device), [])
            blocks, pixels = blocks + count, pixels + count * clean[0, 0].numel()
            if len(reference) == 0:
                continue
            errors += (outcome.estimate - reference).double().square().sum((0, 2, 3)).cpu()
            residual += 0.0 if outcome.solution is None else outcome.solution.residual.sum().item()
        told = self.team.sum(torch.cat([errors, torch.tensor([residual], dtype=torch.float64)]))
        psnr = (-10.0 * (told[:-1] / pixels).log10()).mean()
        return psnr.item(), told[-1].item() / blocks

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
        state = self.engine.state() | {
            "model": self.model.state_dict(),
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

    def _read(self, checkpoint: Path) -> dict[str, Any]:
        return self.team.first(lambda: checkpoints.load(checkpoint))

    def _load(self, checkpoint: Path) -> None:
        state = self._read(checkpoint)
        self.at = Position(**state["position"])
        self.model.load_state_dict(state["model"])
        self._start_engine(state)

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
        self.engine.scale_lr(_ROLLBACK_LR)
        say(
            f"{_BAD_STEPS} steps in a row were not finite or not solved: back to {latest.name} with half the learning rate"
        )
        self._commit()

    def _start_engine(self, state: dict[str, Any] | None = None) -> None:
        """Begin the phase that the run stands in, or go on with it from a state."""
        lr = (self.settings.pretrain_lr, self.settings.lr)[self.at.phase]
        groups = [
            {"params": list(self.model.prior.parameters()), "lr": lr},
            {"params": list(self.model.scalars.values()), "lr": lr * self.settings.lr_scalars_factor},
        ]
        if self.config.model.learn_dictionary:
            groups.append({"params": [self.model.atoms], "lr": lr})
        self.objective = Objective(self.model, self.at.phase, self.settings.jacobian_weight)
        self.engine: Engine = new_engine(
            self.settings.engine, self.objective, groups, self.settings.clip, state, self.team
        )
