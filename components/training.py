"""One Lightning module for every fit: base, teacher, student, fused. Resumes exactly from the last finished epoch."""

import contextlib
import ctypes
import json
import logging
import math
import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from components import backbones
from components.answers import score, write_answers
from components.batches import Epochs, ItemBatches, LessonBatches, TaskBatches
from components.domains.pool import open_pool
from components.draws import seed_of
from components.goals import Goal, goal_of, learner_for
from components.gradients import in_turn
from components.job import FitJob, Watch
from components.learners import store
from components.learners.learner import Learner, learner_size
from components.learners.policy import Policy
from components.learners.views import Views
from components.learning import FitSection
from components.lineage import lineage
from components.networks import share_statistics
from components.notices import tell
from components.plain import to_plain
from components.tasks import TaskBatch
from components.tasksets import read_table
from components.validation import Validation, calibrate, validate

PATIENCE = 5  # steps in a row with a loss or gradient that is not finite
UNDECAYED = {"rates", "norms", "curvature"}  # beside scales and shifts: zero is not where what is learned of the steps should be pulled to


class Fit(pl.LightningModule):
    """Any learner under any objective: AdamW, one-cycle schedule, validation on tasks after every epoch.

    A step whose loss or gradient is not finite changes nothing and is counted; the fit ends with FloatingPointError after PATIENCE in a row.
    """

    def __init__(self, learner: Learner, goal: Goal, section: FitSection, train: Epochs, validation: Validation) -> None:
        super().__init__()
        self.learner, self.loss, self.section, self.epochs, self.validation = learner, goal.loss, section, train, validation
        self.heads = goal.heads  # trained with the learner, kept with the state alone
        self.extra = goal.extra  # teachers: frozen, not saved
        self.extra.requires_grad_(False)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}  # the learner after its best epoch, where that one is kept
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.skipped = self.in_a_row = 0
        self.statistics: dict[str, Tensor] = {}  # running ones, before the step

    def configure_optimizers(self) -> Any:
        named = [(n, p) for module in (self.learner, self.heads) for n, p in module.named_parameters() if p.requires_grad]
        weights = {n: p.ndim > 1 and not UNDECAYED & set(n.split(".")) for n, p in named}
        groups = [
            {"params": [p for n, p in named if weights[n]], "weight_decay": self.section.weight_decay},
            {"params": [p for n, p in named if not weights[n]], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.section.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.section.lr, total_steps=self.section.steps, pct_start=0.15)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def trained(self) -> list[torch.nn.Parameter]:
        return [p for module in (self.learner, self.heads) for p in module.parameters() if p.requires_grad]

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.epochs, batch_size=None)

    def on_train_epoch_start(self) -> None:
        self.sums, self.counts = {}, {}
        self.skipped = 0
        self.learner.train()
        self.extra.eval()

    def training_step(self, batch: Any, index: int) -> Tensor:
        for module in self.learner.modules():  # a fused learner's members too
            if isinstance(module, Learner):
                module.progress, module.seed = self.global_step / self.section.steps, self.epochs.batches.seed
        if index % self.epochs.parts == 0:
            self.statistics = {name: buffer.clone() for name, buffer in self.learner.named_buffers()}
        size = self.learner.tasks_at_once
        if isinstance(batch, TaskBatch) and len(batch.query.y) > size:
            loss, metrics = in_turn(self.loss, self.trained(), batch, size)
        else:
            loss, metrics = self.loss(batch)
        for name, value in metrics.items():
            told = value.item() / self.epochs.parts
            counts = math.isfinite(told)  # of a step that is left out nothing is told
            self.sums[name] = self.sums.get(name, 0.0) + (told if counts else 0.0)
            self.counts[name] = self.counts.get(name, 0) + counts
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Leave a gradient that is not finite out. All processes hold the same reduced gradient, so they agree."""
        held = [p for p in self.trained() if p.grad is not None]
        if bool(torch.nn.utils.get_total_norm([p.grad for p in held], math.inf).isfinite()):  # type: ignore[misc]
            self.in_a_row = 0
            return
        for parameter in held:
            parameter.grad = None  # without a gradient the optimizer leaves parameter and moments as they are
        for name, buffer in self.learner.named_buffers():
            buffer.copy_(self.statistics[name])
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == PATIENCE:
            where = f"in {PATIENCE} steps in a row, up to step {self.global_step}"
            raise FloatingPointError(f"The loss or its gradient was not finite {where}. Lower lr or inner_lr; run it again to go on from the last epoch.")

    def on_train_epoch_end(self) -> None:
        validation = validate(self.learner, self.validation, self.device)
        self.learner.train()
        totals = [*self.sums.values(), *self.counts.values()]
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(torch.tensor(totals, dtype=torch.float64, device=self.device), reduce_op="mean").tolist()
        told, counts = totals[: len(self.sums)], totals[len(self.sums) :]
        train = {f"train/{name}": total / max(count / self.epochs.parts, 1e-12) for name, total, count in zip(self.sums, told, counts, strict=True)}
        if self.skipped:
            train["train/skipped"] = float(self.skipped)
        before = [entry["val/loss"] for entry in self.history if math.isfinite(entry["val/loss"])]
        if self.section.keep == "best" and validation["loss"] < min(before, default=math.inf):
            self.best = {name: w.detach().clone() for name, w in self.learner.state_dict().items()}
        self.history.append({"step": float(self.global_step), **train, **{f"val/{k}": v for k, v in validation.items()}})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"], checkpoint["best"], checkpoint["in_a_row"] = self.history, self.best, self.in_a_row
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("extra.")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history, self.best, self.in_a_row = checkpoint["history"], checkpoint["best"], checkpoint.get("in_a_row", 0)
        own = {f"extra.{k}": v for k, v in self.extra.state_dict().items()}
        checkpoint["state_dict"] = checkpoint["state_dict"] | own


class EveryEpoch(Checkpoint):
    """Runs last in an epoch: save the state under a temporary name, rename it, keep the one before, tell who watches."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self.folder, self.watch = folder, watch

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Tell what was told before a kill: the new run of the stage has none of it, also where no epoch is left."""
        for entry in module.history:  # type: ignore[union-attr, operator]
            self._tell(trainer, dict(entry), True)  # type: ignore[call-overload]

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        module.epochs.epoch = trainer.current_epoch  # type: ignore[union-attr]

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            self.watch.step(trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        newest, partial = self.folder / "state.ckpt", self.folder / "state.partial"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            if newest.exists():
                os.replace(newest, self.folder / "state.previous.ckpt")
            os.replace(partial, newest)
        self._tell(trainer, dict(module.history[-1]), False)  # type: ignore[union-attr, index, arg-type]

    def _tell(self, trainer: pl.Trainer, entry: dict[str, float], again: bool) -> None:
        if trainer.is_global_zero:
            self.watch.epoch(int(entry.pop("step")), entry, again)


def use_fast_allocator() -> None:
    """Keep large blocks in the process: glibc otherwise returns them after every layer and the page faults dominate.

    Measured on two cores: training steps 1.4 to 1.9 times faster. Does nothing where there is no glibc.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in ((-3, 1 << 30), (-1, 1 << 30), (-2, 1 << 26)):  # mmap threshold, trim threshold, top pad
            libc.mallopt(parameter, value)


def quieten() -> None:
    """Silence what Lightning says of things that are meant to be so, or that only a new version of it can change."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # devices found, epochs reached
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # its use of torch's pytree
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen normalisation and teachers
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # batches are drawn faster than they are used
    warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")  # resuming


def run(job: FitJob, watch: Watch, label: str) -> dict[str, float]:
    """Fit, calibrate on validation tasks, write the learner into job.out, and return its final metrics.

    Continues from job.state when an earlier run of the same job was stopped; the result is then the same to the last bit.
    """
    quieten()
    use_fast_allocator()
    torch.set_num_threads(job.trainer.threads)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    started = time.monotonic()
    pool = open_pool(job.pool)
    learner, spec = learner_for(job, pool)
    began = store.digest(learner)
    validation, augment = Validation(pool, job.tasksets), job.domain.augment
    if job.order_weight:
        for one in (learner, *getattr(learner, "members", [])):
            one.objective = replace(one.objective, order_weight=job.order_weight, unit=validation.unit)
    goal = goal_of(job, learner, pool)
    batches: ItemBatches | TaskBatches
    if job.objective == "base" and isinstance(learner, Policy):
        assert job.base is not None
        table = read_table(job.tasksets, "train")
        batches = TaskBatches(pool, table, max(1, job.base.batch // table.query.shape[2]), seed_of(job.seed, "base"), augment)
    elif job.objective == "base":
        assert job.base is not None
        batches = ItemBatches(pool, job.base.turns, job.base.batch, job.seed, augment)
    else:
        table, seed = read_table(job.tasksets, "train"), seed_of(job.seed, job.objective)
        if job.recipe is None:
            batches = TaskBatches(pool, table, job.tasks_per_step, seed, augment, job.turns)
        else:
            batches = LessonBatches(pool, table, job.tasks_per_step, seed, augment, job.recipe, job.turns)
    state = Path(job.state)
    state.mkdir(parents=True, exist_ok=True)
    epochs = Epochs(batches, job.fit.epoch_steps, rank, world, job.trainer.accumulate)
    fit = Fit(learner, goal, job.fit, epochs, validation)
    metrics = _train(fit, job, state, watch, label, rank, world) if job.fit.steps else {}
    if job.learner is not None and job.learner.views > 1:
        learner, spec = Views(learner.cpu(), job.learner.views, augment), store.views_spec(spec, job.learner.views, augment)
    metrics["temperature"] = calibrate(learner.cpu(), validation)
    metrics |= {f"val/{k}": v for k, v in validate(learner, validation).items()}
    metrics["parameters"] = learner_size(learner)
    if rank == 0:
        names = pool.classes["name"].to_pylist()
        trained = [names[c] for c in pool.split("train")]
        before = [store.about(path) for path in (*job.teachers, *job.members, *([job.start] if job.start else []))]
        before += backbones.behind(job.backbone.start) if job.backbone.start is not None else []
        about: dict[str, Any] = lineage(pool.domain, trained, before) | {"objective": job.objective, "start": began}
        about |= pool.kept | ({"frozen": True} if job.backbone.frozen else {})
        store.save(learner, spec, Path(job.out), about, pool.path)
        if job.answers:
            write_answers(score(learner, validation), Path(job.out))
        (Path(job.out) / "roles.json").write_text(json.dumps(learner.parameter_roles() | {"theta_fixed": learner.theta_fixed}, indent=1) + "\n")
        (Path(job.out) / "history.json").write_text(json.dumps(fit.history, indent=1) + "\n")
        (Path(job.out) / "job.json").write_text(json.dumps(to_plain(job), indent=1) + "\n")
    metrics["fit/seconds"] = time.monotonic() - started
    return metrics


def _train(fit: Fit, job: FitJob, state: Path, watch: Watch, label: str, rank: int, world: int) -> dict[str, float]:
    """Run the optimisation from where it stands to its end; return the last epoch's metrics."""
    untaught = isinstance(fit.learner, Policy) and job.recipe is None  # what a base's rates are, or a policy would be told: others learn it
    trainer = pl.Trainer(
        accelerator=job.trainer.accelerator,
        devices=world // job.trainer.nodes,
        num_nodes=job.trainer.nodes,
        strategy="auto" if world == 1 else "ddp_find_unused_parameters_true" if untaught else "ddp",
        precision=job.trainer.precision,  # type: ignore[arg-type]
        max_epochs=job.fit.steps // job.fit.epoch_steps,
        limit_train_batches=job.fit.epoch_steps * job.trainer.accumulate,
        accumulate_grad_batches=job.trainer.accumulate,
        callbacks=[EveryEpoch(state, watch)],
        logger=False,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=str(state),
    )
    share_statistics(fit.learner, world > 1 and fit.learner.tasks_at_once > 1)  # who takes task by task has each task's
    trainer.fit(fit, ckpt_path=_newest_readable(state), weights_only=True)
    if trainer.interrupted or trainer.global_step < job.fit.steps:
        raise KeyboardInterrupt(f"{label} stopped at step {trainer.global_step} of {job.fit.steps}; run it again to go on from there.")
    if fit.best:
        fit.learner.load_state_dict(fit.best)
    metrics = dict(fit.history[-1])
    metrics.pop("step")
    return metrics


def _newest_readable(state: Path) -> str | None:
    """Return the newest checkpoint that can be read, setting a damaged one aside; None to start afresh."""
    for name in ("state.ckpt", "state.previous.ckpt"):
        path = state / name
        if not path.exists():
            continue
        try:
            torch.load(path, map_location="cpu", weights_only=True)
            return str(path)
        except Exception as error:
            tell(f"checkpoint {path} cannot be read ({type(error).__name__}); going on from the one before")
            with contextlib.suppress(FileNotFoundError):  # another process of the fit has done so
                os.replace(path, path.with_suffix(".damaged"))
    return None
