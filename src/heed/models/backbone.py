"""One transformer body that carries several roles: with LoRA each role is an adapter, and at most one acts at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.functional import cast_adapter_dtype
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from heed.errors import require
from heed.models.attention import attending, fastest_attention, is_replaceable
from heed.models.batch import TokenBatch
from heed.models.fused import Replacement, replaced, replacements
from heed.models.readout import Readout, reading_out
from heed.models.sharing import SharedPrompts, share_prompts

PROBE = TokenBatch(
    ids=torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 6, 7]]),
    attention_mask=torch.ones(2, 5, dtype=torch.bool),
    response_mask=torch.tensor([[False, False, False, True, True]] * 2),
)
"""Two short responses to one prompt."""
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size", "local": "window_size"}
"""Kinds of attention that see the last tokens only, and what configurations call how many."""

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters, `W + alpha / rank * B A` (Hu et al. 2021, arXiv:2106.09685, section 4.1)."""

    rank: int = 16
    """Rows of A, columns of B."""
    alpha: int = 32
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of A's inputs dropped while gradients are recorded."""
    target: str | tuple[str, ...] = ALL_LINEAR
    """Names of the linear layers that get an adapter; `all-linear` is all of them but the head."""
    seed: int = 0
    """Seed of A's first values."""

    def __post_init__(self) -> None:
        require(self.rank > 0, "rank", self.rank, "a rank above 0")
        require(self.alpha > 0, "alpha", self.alpha, "a scale above 0")
        require(len(self.target) > 0, "target", self.target, f"{ALL_LINEAR}, or names of linear layers")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a share from 0 to below 1")


class Backbone:
    """A transformer body with the adapters of the roles that share it.

    Every trained adapter keeps `requires_grad` whichever is active, and a checkpointed layer is recomputed with the adapter
    that it first ran with: roles may alternate between a forward and its backward without losing or mixing gradients.
    """

    def __init__(self, body: Any, lora: LoRAConfig | None = None) -> None:
        self.body = body
        self.lora = lora
        self.configs: dict[str, LoraConfig] = {}
        self._layers: dict[str, LoraLayer] = {}
        self._trained: list[str] = []
        self._active: str | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Backbone:
        """Another body with the same weights, which makes its own trials; of whole models, as adapters are copied one by one.

        Layers whose activations are recomputed hold on to their backbone. In a copy they hold on to the copy.
        """
        assert not self.configs, "a backbone with adapters"
        memo[id(self)] = copied = Backbone.__new__(Backbone)
        copied.__init__(copy.deepcopy(self.body, memo), self.lora)
        return copied

    def hidden(self, batch: TokenBatch, read: Tensor | None = None) -> Tensor:
        """Last hidden states `[B, T, D]` with whatever adapter is active; a prompt that adjacent rows share is run once.

        Padding is on the right and attention looks left: no token sees padding, so rows apart need no attention mask. Where `read`
        `[B, T]` is given, the states that it does not mark mean nothing, and the last layer is spared most of their arithmetic.
        """
        shared = share_prompts(batch, self.hidden_size) if self.shares_prompts else None
        if shared is None:
            return self._run(batch.ids, self._readout(read))
        readout = self._readout(None if read is None else shared.pack(read), shared.visible)
        return shared.unpack(self._run_shared(shared, readout))

    @property
    def hidden_size(self) -> int:
        return self.body.config.hidden_size

    @cached_property
    def shares_prompts(self) -> bool:
        """Whether several responses to a prompt can be run beside it: for plain attention, which obeys masks and positions.

        Tried on two responses: neither may see the other, to the last bit, and both must come out as they do alone.
        """
        known = getattr(self.body.config, "_attn_implementation", None) in ("sdpa", "eager")
        if not (known and self._looks_left and "position_ids" in signature(self.body.forward).parameters):
            return False
        batch = PROBE.to(next(self.body.parameters()).device)
        changed = 4 * batch.response_mask[:1].repeat(2, 1)
        changed[1] = 0
        other = replace(batch, ids=batch.ids + changed)
        with self._trial():
            layouts = (share_prompts(each, self.hidden_size) for each in (batch, other))
            try:
                found, beside_other = (shared.unpack(self._run_shared(shared)) for shared in layouts if shared)
            except (TypeError, ValueError):  # a body that takes no mask for each token, such as one with ALiBi
                return False
            alone = self._run(batch.ids)
        return torch.equal(found[1], beside_other[1]) and is_same(found, alone)

    @cached_property
    def reads_out(self) -> bool:
        """Whether the last layer can be run for those tokens alone whose states are read: tried, and they come out as they do with all."""
        if not (self._looks_left and is_replaceable(self.body) and len(self._decoder_layers) == self.body.config.num_hidden_layers):
            return False
        batch = PROBE.to(next(self.body.parameters()).device)
        readout = Readout.of(batch.before_response)
        assert readout is not None, "two tokens of five"
        with self._trial():
            alone = self._run(batch.ids)
            try:
                found = self._run(batch.ids, readout)
            except TypeError:  # a layer that keeps what it is told from its attention
                return False
        return is_same(found[batch.before_response], alone[batch.before_response])

    @property
    def _looks_left(self) -> bool:
        """Whether every token sees all tokens before it; and the probes' ids are words."""
        config = self.body.config
        kinds = {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}
        windows = [getattr(config, name, None) for name in WINDOWS.values()]
        return not kinds and not any(windows) and config.vocab_size > 10

    @cached_property
    def _decoder_layers(self) -> list[GradientCheckpointingLayer]:
        return [m for m in self.body.modules() if isinstance(m, GradientCheckpointingLayer)]

    def in_few_passes(self) -> AbstractContextManager[None]:
        """Within, norms and rotations run in few passes over memory."""
        return replaced(self._replacements)

    @cached_property
    def _replacements(self) -> list[Replacement]:
        return replacements(self.body)

    def _readout(self, read: Tensor | None, visible: Tensor | None = None) -> Readout | None:
        return None if read is None or not self.reads_out else Readout.of(read, visible)

    def _run(self, ids: Tensor, readout: Readout | None = None, **arguments: Tensor) -> Tensor:
        reading = nullcontext() if readout is None else reading_out(self._decoder_layers[-1], self.body.config, readout)
        with reading, self.in_few_passes():
            return self.body(input_ids=ids, use_cache=False, **arguments).last_hidden_state

    def _run_shared(self, shared: SharedPrompts, readout: Readout | None = None) -> Tensor:
        mask = shared.mask(next(self.body.parameters()).dtype)
        with attending(self.body.config, fastest_attention(self.body, mask)):
            return self._run(shared.ids, readout, position_ids=shared.positions, attention_mask=mask)

    def activate(self, adapter: str | None, *, training: bool) -> None:
        """Let this adapter alone act; None switches all of them off."""
        if self.body.training != training:
            self.body.train(training)
        if self._active == adapter:
            return
        for layer in self._layers.values():
            layer.enable_adapters(adapter is not None)
            if adapter is not None:
                layer.set_adapter(adapter, inference_mode=adapter not in self._trained)
            # Both calls freeze the adapters that are not active.
            layer.set_requires_grad(self._trained)
        self._active = adapter

    def add(self, role: str, seed: int, config: LoraConfig | None = None) -> str:
        """Add an adapter that changes nothing yet (B = 0) and return its name: the role, numbered where it is taken."""
        config = config or self._peft_config()
        name = role if role not in self.configs else f"{role}{sum(n.startswith(role) for n in self.configs) + 1}"
        inject_adapter_in_model(config, self.body, name)
        cast_adapter_dtype(self.body, name)  # float32, whatever the base is in
        del self.body.peft_config  # peft warns where it finds the configuration of the adapter before
        self.body.eval()  # the new modules come in training mode
        self.configs[name] = config
        self._layers = {n: m for n, m in self.body.named_modules() if isinstance(m, LoraLayer)}
        self._trained.append(name)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter_name, parameter in self.parameters(name).items():
                if ".lora_A." in parameter_name:
                    # peft's own distribution, from a generator of ours: U(-1, 1) / sqrt(D).
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-1, 1, generator=generator) * parameter.shape[1] ** -0.5)
        self._active = name
        self.activate(None, training=False)
        return name

    def copy(self, adapter: str, role: str) -> str:
        """Add a copy of an adapter and return its name."""
        name = self.add(role, 0, copy.deepcopy(self.configs[adapter]))
        with torch.no_grad():
            for target, source in zip(self.parameters(name).values(), self.parameters(adapter).values(), strict=True):
                target.copy_(source)
        return name

    def freeze(self, adapter: str) -> None:
        """Train this adapter no more."""
        self._trained.remove(adapter)
        for layer in self._layers.values():
            layer.set_requires_grad(adapter, False)

    def parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        """The adapter's own weights by their names in the body."""
        return {
            f"{name}.{part}.{adapter}.weight": getattr(layer, part)[adapter].weight
            for name, layer in self._layers.items()
            for part in ("lora_A", "lora_B")
            if adapter in getattr(layer, part)
        }

    def has_learned(self, adapter: str) -> bool:
        """Whether the adapter changes anything (B is not 0)."""
        return any(bool(p.any()) for name, p in self.parameters(adapter).items() if ".lora_B." in name)

    def checkpoint_activations(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        options = {"use_reentrant": False, "context_fn": self._recomputation}
        self.body.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        # transformers makes the embeddings' output require gradients; only reentrant checkpoints need that.
        self.body.disable_input_require_grads()

    def _peft_config(self) -> LoraConfig:
        assert self.lora is not None, "roles on this backbone are whole models"
        return LoraConfig(
            r=self.lora.rank,
            lora_alpha=self.lora.alpha,
            lora_dropout=self.lora.dropout,
            target_modules=lora_targets(self.body, self.lora.target),
            fan_in_fan_out=any(isinstance(m, Conv1D) for m in self.body.modules()),
        )

    def _recomputation(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        standing = [each for each in self._replacements if each.stands]
        return nullcontext(), self._as_now(self._active, self.body.training, self.body.config._attn_implementation, standing)

    @contextmanager
    def _trial(self) -> Iterator[None]:
        """Runs that are compared: as the body is now, without gradients, dropout, or roundings of whoever asks first."""
        device = next(self.body.parameters()).device.type
        as_now = self._as_now(self._active, False, self.body.config._attn_implementation, [])
        with as_now, torch.no_grad(), torch.autocast(device, enabled=False):
            yield

    @contextmanager
    def _as_now(self, adapter: str | None, training: bool, attention: str, standing: list[Replacement]) -> Iterator[None]:
        adapter_before, training_before = self._active, self.body.training
        self.activate(adapter, training=training)
        try:
            with attending(self.body.config, attention), replaced(standing):
                yield
        finally:
            self.activate(adapter_before, training=training_before)


def lora_targets(body: nn.Module, target: str | tuple[str, ...]) -> str | list[str]:
    """The layers that get adapters, as peft asks for them; UserError for a name that no layer has, which it would pass over."""
    if target == ALL_LINEAR:
        return ALL_LINEAR
    modules = ((_without_adapters(name), module) for name, module in body.named_modules() if ".lora_" not in name)
    layers = [name for name, module in modules if isinstance(module, nn.Linear | Conv1D)]
    names = [target] if isinstance(target, str) else list(target)
    unknown = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in layers)]
    known = sorted({layer.rpartition(".")[2] for layer in layers})
    require(not unknown, "lora.target", ", ".join(unknown), f"{ALL_LINEAR}, or names among {', '.join(known)}")
    return names


def is_same(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding."""
    tolerance = max(1e-4, 8 * torch.finfo(found.dtype).eps) * expected.abs().max()
    return bool((found - expected).abs().max() <= tolerance)


@torch.no_grad()
def merged_state(model: nn.Module, adapter: str | None) -> dict[str, Tensor]:
    """The model's weights as if it had never had adapters, with this one merged in; the model itself is left as it is."""
    adapted: dict[str, Any] = {
        f"{_without_adapters(name)}.{getattr(layer, 'parameter_name', 'weight')}": layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    state = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        name = _without_adapters(name)
        if name in adapted and adapter is not None and adapter in adapted[name].lora_A:
            tensor = (tensor + adapted[name].get_delta_weight(adapter)).to(tensor.dtype)
        state[name] = tensor.cpu()
    return state


def _without_adapters(name: str) -> str:
    """What a module or weight is called where peft wraps nothing; it wraps a module of several weights, as experts are, once for each."""
    return name.replace(".base_layer", "")
