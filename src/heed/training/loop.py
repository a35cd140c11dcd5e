"""The one training loop: an update with gradient accumulation, and a state that resumes bit for bit."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from heed.errors import NonFiniteLoss, UserError, require
from heed.models.allocator import keep_freed_memory
from heed.models.language_model import LanguageModel
from heed.models.scalar_model import ScalarModel
from heed.training.run import Run, restore_rng_state, rng_state

Role = LanguageModel | ScalarModel
MicroBatch = TypeVar("MicroBatch")
ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What every algorithm asks of the optimiser."""

    DEFAULT_LR: ClassVar[tuple[float, float]] = (1e-5, 1e-4)
    """Peak learning rates where none is given: for whole models, and for LoRA adapters."""

    lr: float | None = None
    """Peak learning rate of AdamW; none takes the algorithm's own, higher for LoRA adapters than for whole models."""
    batch_size: int = 32
    """Items (demonstrations, pairs, rankings) in one update."""
    epochs: int = 1
    """Passes over the data."""
    max_tokens: int | None = None
    """Tokens in one micro-batch, padding included; none takes what the device does best: 8,192 on a GPU, and on a
    CPU 1,024, or 512 for larger models."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_fraction: float = 0.03
    """Share of all updates over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only."""
    max_grad_norm: float = 1.0
    """Gradients of each role are scaled down to this norm."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 autocasts the matrix products; `auto` takes it where it pays: on a GPU, and on a CPU from 20M parameters on."""
    checkpoint_every: int = 100
    """Updates (or iterations of a policy gradient) between checkpoints."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        require(self.lr is None or self.lr > 0, "lr", self.lr, "a number above 0, or none")
        require(self.batch_size > 0, "batch_size", self.batch_size, "a whole number above 0")
        require(self.epochs > 0, "epochs", self.epochs, "a whole number above 0")
        require(self.max_tokens is None or self.max_tokens > 0, "max_tokens", self.max_tokens, "a whole number above 0, or none")
        require(0 <= self.warmup_fraction < 1, "warmup_fraction", self.warmup_fraction, "a share from 0 to below 1")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or above")
        require(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "a number above 0")
        require(self.checkpoint_every > 0, "checkpoint_every", self.checkpoint_every, "a whole number above 0")

    def peak_lr(self, model: Role) -> float:
        """The learning rate of a model that is trained with these settings."""
        return self.lr or self.DEFAULT_LR[model.adapter is not None]


@dataclass(slots=True)
class TrainState:
    """Everything that an update changes, which is everything that a checkpoint holds."""

    roles: dict[str, Role]
    """The models being trained, by name."""
    optimizer: torch.optim.Optimizer
    parameters: dict[str, nn.Parameter]
    """All trained parameters as `role/name`, in the optimiser's order."""
    config: TrainConfig
    num_updates: int
    """Updates planned in all; the learning-rate schedule ends there."""
    use_bf16: bool
    update: int = 0
    """Updates done."""
    step: int = 0
    """Rows of metrics logged: updates, or iterations of a policy gradient. It is the data cursor too."""
    values: dict[str, object] = field(default_factory=dict)
    """What an algorithm keeps beyond weights: KL coefficient, running baseline, the engine's random state."""

    @classmethod
    def create(cls, roles: Mapping[str, Role], config: TrainConfig, num_updates: int, lrs: Mapping[str, float] | None = None) -> TrainState:
        """AdamW over the trainable parameters of all roles, grouped by role and name; `lrs` overrides a role's rate.

        Raises `UserError` for weights in bf16, where 99 % of updates at a usual learning rate are rounded away.
        """
        torch.manual_seed(config.seed)  # of dropout, which draws from the process's own generator
        parameters, groups = {}, []
        for role, model in roles.items():
            named = model.trainable()
            held = {parameter.dtype for parameter in named.values()} - {torch.float32}
            if held:
                raise UserError(
                    f"the weights of the {role} are {', '.join(map(str, held))}, which are too coarse for the steps of an optimiser",
                    expected="float32 where whole models are trained (precision: bf16 is for their products), or LoRA",
                    fix="set dtype: float32, or lora",
                )
            parameters |= {f"{role}/{name}": parameter for name, parameter in named.items()}
            lr = (lrs or {}).get(role, config.peak_lr(model))
            for decays in (True, False):
                members = [p for p in named.values() if (p.ndim >= 2) == decays]
                if members:
                    groups.append({"params": members, "peak_lr": lr, "weight_decay": config.weight_decay if decays else 0.0})
        size = sum(p.numel() for p in next(iter(roles.values())).model.parameters())
        device = next(iter(parameters.values())).device
        pays = device.type == "cuda" or (size >= 20_000_000 and torch.backends.mkldnn.is_available() and cpu_has_bf16())
        use_bf16 = config.precision == "bf16" or (config.precision == "auto" and pays)
        if device.type == "cpu":
            keep_freed_memory()
        optimizer = torch.optim.AdamW(groups, fused=True)
        return cls(dict(roles), optimizer, parameters, config, num_updates, use_bf16)

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bf16)

    def save(self, run: Run) -> None:
        """Write the checkpoint: weights of all roles, optimiser, counters, an algorithm's own values, random state."""
        tensors = {name: parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter)
            if moments:
                tensors |= {f"adamw.{key}/{name}": moments[key] for key in ADAMW_STATE}
        run.save(tensors | rng_state(self.device), {"step": self.step, "update": self.update, "values": self.values})

    def resume(self, run: Run) -> bool:
        """Continue from the run's checkpoint, if it has one."""
        found = run.load()
        if found is None:
            return False
        tensors, values = found
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])
                moments = {key: tensors.get(f"adamw.{key}/{name}") for key in ADAMW_STATE}
                if all(value is not None for value in moments.values()):
                    self.optimizer.state[parameter] = {key: cast(Tensor, value).to(parameter.device) for key, value in moments.items()}
        self.step, self.update = cast(int, values["step"]), cast(int, values["update"])
        self.values = cast(dict[str, object], values["values"])
        for role in self.roles.values():
            role.version = self.update
        restore_rng_state(tensors, self.device)
        return True


class Stats:
    """Sums and counts gathered on the device, read off it once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._counts: dict[str, Tensor | float] = defaultdict(float)

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add a sum over `count` things; the mean over everything added is what is reported."""
        self._sums[name] += total.detach() if isinstance(total, Tensor) else total
        self._counts[name] += count

    def add_agreement(self, differences: Tensor, labels: Tensor) -> None:
        """How often and how far the scores of pairs, better less worse, are on the side that people preferred; their ties are left out.

        `labels` are the probabilities that the better one is better: below 1/2 people preferred the other.
        """
        in_favour, decided = differences * (labels - 0.5).sign(), labels != 0.5
        self.add("accuracy", ((in_favour > 0) & decided).sum() + 0.5 * ((in_favour == 0) & decided).sum(), decided.sum())
        self.add("margin", in_favour.sum(), decided.sum())

    def means(self) -> dict[str, float]:
        return {name: float(total) / max(float(self._counts[name]), 1e-12) for name, total in self._sums.items()}


def update(
    state: TrainState,
    micro_batches: Iterable[MicroBatch],
    losses: Callable[[MicroBatch, Stats], Iterator[Tensor]],
    stats: Stats,
) -> None:
    """One optimiser step over micro-batches whose losses are already divided by the global count.

    `losses` yields one loss per role; its backward pass ends before the next role's forward begins, so roles that share
    a backbone never see each other's adapters. Raises `NonFiniteLoss` before any weight has changed.
    """
    for batch in micro_batches:
        pending = losses(batch, stats)
        while (loss := _next_loss(state, pending)) is not None:
            loss.backward()
    lr_share = schedule_factor(state.update, state.num_updates, state.config)
    for role in state.roles:
        own = [p for name, p in state.parameters.items() if name.startswith(f"{role}/")]
        norm = nn.utils.clip_grad_norm_(own, state.config.max_grad_norm)
        if not torch.isfinite(norm):
            state.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteLoss(
                f"the gradient of the {role} is {norm.item()} at update {state.update + 1}",
                expected="finite numbers",
                fix="lower lr or look for odd data; the last good checkpoint is kept",
            )
        stats.add("grad_norm" if len(state.roles) == 1 else f"{role}_grad_norm", norm, 1)
    for group in state.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * lr_share
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.update += 1
    for role in state.roles.values():
        role.version = state.update


def _next_loss(state: TrainState, pending: Iterator[Tensor]) -> Tensor | None:
    # Only forwards are cast: a backward pass keeps the precision that each operation had in its forward.
    with state.autocast():
        return next(pending, None)


def schedule_factor(update: int, num_updates: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at one update: linear warm-up, then constant, linear to 0, or cosine to 0."""
    warmup = math.ceil(config.warmup_fraction * num_updates)
    if update < warmup:
        return (update + 1) / (warmup + 1)
    progress = (update - warmup) / max(num_updates - warmup, 1)
    if config.schedule == "linear":
        return 1 - progress
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


class Batches(Sequence[list[int]]):
    """Which items each update sees: a fresh permutation every epoch, a pure function of the seed and the update's index."""

    def __init__(self, num_items: int, batch_size: int, epochs: int, seed: int) -> None:
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.per_epoch = math.ceil(num_items / batch_size)
        self._length = epochs * self.per_epoch
        self._epoch: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> list[int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < self._length:
            raise IndexError(index)
        epoch, place = divmod(index, self.per_epoch)
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch = epoch, torch.randperm(self.num_items, generator=generator).tolist()
        return self._epoch[1][place * self.batch_size : (place + 1) * self.batch_size]


def train(
    state: TrainState, run: Run, batches: Batches, step: Callable[[list[int], Stats], None], *, show: Sequence[str]
) -> dict[str, float]:
    """Updates over a fixed data set, from wherever the state is to the end of `batches`; returns the last row of metrics."""
    state.resume(run)
    while state.step < len(batches):
        stats = Stats()
        step(batches[state.step], stats)
        state.step += 1
        row = {**stats.means(), "lr": state.optimizer.param_groups[0]["lr"]}
        run.log(state.step, len(batches), row, show=show)
        due = state.step % state.config.checkpoint_every == 0 or state.step == len(batches)
        run.checkpoint_if_due(due, lambda: state.save(run))
    return run.last_metrics()


def cpu_has_bf16() -> bool:
    """True where the processor multiplies bf16 matrices natively (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
