"""From a Hugging Face id or folder to a policy or a reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.hub import cached_file

from heed.errors import UserError, require
from heed.models.backbone import Backbone, LoRAConfig
from heed.models.language_model import LanguageModel
from heed.models.saving import SIDECAR, adapter_key
from heed.models.scalar_model import ScalarModel, is_decoder, on_backbone

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ADAPTER_CONFIG = "adapter_config.json"
GELU_TANH, WRITTEN_OUT = "gelu_pytorch_tanh", ("gelu_new", "gelu_fast")
"""One formula, which transformers has as PyTorch's kernel and, for GPT-2 and others, written out in eight operations."""


def load_policy(
    path: str | Path,
    *,
    lora: LoRAConfig | None = None,
    device: str = "auto",
    dtype: str = "float32",
    gradient_checkpointing: bool = False,
) -> LanguageModel:
    """A causal language model by id, folder or adapter folder; an adapter that is loaded is merged before a new one is added.

    UserError where there is no such model, where weights are missing, or where its logits are not head times hidden state.
    """
    model = _load(AutoModelForCausalLM, path, device, dtype)
    _check_head(model, path)
    tokenizer = _load_tokenizer(path)
    backbone, adapter = Backbone(model.base_model, lora), None
    if lora is not None:
        model.requires_grad_(False)
        adapter = backbone.add("policy", lora.seed)
    if gradient_checkpointing:
        backbone.checkpoint_activations()
    return LanguageModel(model, tokenizer, backbone, adapter=adapter, source=_source(path))


def load_reward_model(
    path: str | Path,
    *,
    policy: LanguageModel | None = None,
    device: str = "auto",
    dtype: str = "float32",
    gradient_checkpointing: bool = False,
) -> ScalarModel:
    """Any sequence-classification model with one label, decoder or encoder, by id, folder or adapter folder.

    With a LoRA policy, a reward model that heed saved as an adapter over the policy's base shares the policy's backbone.
    UserError where there is no such model, where it has other than one label, or where its head was never trained.
    """
    apart = Path(path) / "adapter"
    if policy is not None and policy.adapter is not None and policy.source is not None and _adapter_base(apart) == policy.source:
        reward_model = _as_adapter(apart, policy)
    else:
        model = _load(AutoModelForSequenceClassification, path, device, dtype)
        if is_decoder(model):
            _check_head(model, path)
        backbone = Backbone(model.base_model)
        if gradient_checkpointing:
            backbone.checkpoint_activations()
        reward_model = ScalarModel(model, _load_tokenizer(path), backbone, adapter=None, source=_source(path))
    sidecar = cached_file(path, SIDECAR, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    if sidecar is not None:
        reward_model.offset = float(json.loads(Path(sidecar).read_text())["offset"])
    return reward_model


def _as_adapter(folder: Path, policy: LanguageModel) -> ScalarModel:
    config: Any = LoraConfig.from_pretrained(str(folder))
    config.inference_mode, config.modules_to_save = False, None
    tensors = load_file(folder / "adapter_model.safetensors")
    head = tensors.get("base_model.model.score.weight")
    if head is None:
        raise UserError("its adapter has no head", file=folder.parent, expected="a trained reward model")
    adapter = policy.backbone.add("reward", 0, config)
    reward_model = on_backbone(policy, policy.backbone, adapter, head)
    reward_model.load_state({name: tensors[adapter_key(reward_model, name)] for name in reward_model.weights()})
    return reward_model


def _load(auto: Any, path: str | Path, device: str, dtype: str) -> Any:
    require(dtype in DTYPES, "dtype", dtype, " or ".join(DTYPES))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda":
        # cuDNN's attention makes a plan for every new shape, up to a second each, and shapes hardly ever come twice here.
        # Source: https://github.com/modelscope/FunASR/issues/3704 (PyTorch 2.11, B200).
        torch.backends.cuda.enable_cudnn_sdp(False)
    base = _adapter_base(path)
    if base is None:
        model, missing = _from_pretrained(auto, path, dtype)
    else:
        # A classifier's head comes with the adapter; what the base lacks is not missed.
        head = {"num_labels": 1} if auto is AutoModelForSequenceClassification else {}
        model, missing = _from_pretrained(auto, base, dtype, **head)
        model = PeftModel.from_pretrained(model, str(path)).merge_and_unload()
        missing = []
    is_reward_model = auto is AutoModelForSequenceClassification
    if missing:
        kind = "trained reward model" if is_reward_model else "causal language model"
        raise UserError(f"{path} has no weights for {', '.join(missing[:3])}", expected=f"a {kind}")
    if is_reward_model and model.config.num_labels != 1:
        raise UserError(f"{path} has {model.config.num_labels} labels", expected="a reward model, which has 1")
    return model.to(device)


def _from_pretrained(auto: Any, path: str | Path, dtype: str, **changes: Any) -> tuple[Any, list[str]]:
    """The model without dropout, with the kernel of its activation, and the names of the weights that were not there."""
    _check_folder(path)
    try:
        config = AutoConfig.from_pretrained(path, **changes)
        given = config.to_dict()
        # Log-probabilities must be those that were sampled from, so nothing is dropped. Saved with the configuration as it was.
        built = {name: 0.0 for name, value in given.items() if "drop" in name and isinstance(value, float)}
        built |= {name: GELU_TANH for name, value in given.items() if value in WRITTEN_OUT}
        for name, value in built.items():
            setattr(config, name, value)
        model, report = auto.from_pretrained(path, config=config, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path} does not load: {reason}", fix="check the name, or fetch it first with `hf download`") from error
    for name in built:
        setattr(model.config, name, given[name])
    return model, sorted(report["missing_keys"])


def is_meant_as_folder(path: str | Path) -> bool:
    """Whether a path that is not there can be no Hugging Face id, `OWNER/NAME` or `NAME`, or its first part is a folder here."""
    return isinstance(path, Path) or path.startswith((".", "/", "~")) or path.count("/") > 1 or ("/" in path and Path(path).parent.is_dir())


def _check_folder(path: str | Path) -> None:
    folder = Path(path)
    if not folder.is_dir():
        if is_meant_as_folder(path):
            raise UserError("no such folder", file=path, expected="a model folder or a Hugging Face id")
        return
    if not (folder / "config.json").exists():
        raise UserError("no config.json here", file=path, expected="a model folder", fix="name the folder that a training saved")
    if not any(folder.glob("*.safetensors")):
        raise UserError("no *.safetensors weights here", file=path, fix="save them with `save_pretrained`; pickled weights are not opened")


def _adapter_base(path: str | Path) -> str | None:
    config = Path(path) / ADAPTER_CONFIG
    return json.loads(config.read_text())["base_model_name_or_path"] if config.exists() else None


def _load_tokenizer(path: str | Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} has no tokenizer that loads", fix="save the model's tokenizer beside its weights") from error


def _source(path: str | Path) -> str | None:
    if _adapter_base(path) is not None:
        return None
    return str(Path(path).resolve()) if Path(path).is_dir() else str(path)


@torch.inference_mode()
def _check_head(model: Any, path: str | Path) -> None:
    """UserError unless the model's logits are its head times its last hidden state, as every fast path here assumes."""
    head = model.score if is_decoder(model) else model.get_output_embeddings()
    headless = UserError(f"{path} is a {type(model).__name__}, which has no head over one transformer body of text")
    if head is None or model.base_model is model or model.config.get_text_config() is not model.config:
        raise headless
    ids = torch.tensor([[i for i in range(8) if i != getattr(model.config, "pad_token_id", None)][:4]], device=model.device)
    seen: list[Tensor] = []
    # Of the same forward: two of them need not agree to the last bit, and layers make more of what little they differ by.
    with model.base_model.register_forward_hook(lambda body, inputs, output: seen.append(output.last_hidden_state)):
        logits = model(ids, use_cache=False).logits.float()
    if not seen:
        raise headless
    own = head(seen[0]).float()
    if is_decoder(model):
        own = own[:, -1]
    if (own - logits).abs().max() > 8 * torch.finfo(model.dtype).eps * logits.abs().max():
        raise UserError(
            f"{path} ({type(model).__name__}) changes its logits after the head",
            expected="logits that are head times hidden state",
            fix="choose a model family without soft-capped or scaled logits",
        )
