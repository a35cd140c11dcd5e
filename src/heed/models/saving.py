"""Model folders that other tools load: ordinary weights, with an adapter apart where there is one."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from heed.models.backbone import merged_state
from heed.models.role import Role

SIDECAR = "heed.json"
NEW_PAD_TOKEN = "<|heed_pad|>"


def save_role(role: Role, folder: Path, *, offset: float | None = None) -> None:
    """Write the role as a transformers folder; `offset` is a scalar model's, kept in `heed.json` beside the weights.

    Everything is built in a temporary folder and only then moved in, file by file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        built = Path(temporary)
        model, tokenizer = plain_model(role), copy.deepcopy(role.tokenizer)
        if offset is None:
            _tell_end_tokens(model, role.eos_ids)
        elif hasattr(model, "score"):
            _tell_padding(model, tokenizer, role.eos_ids)
        model.save_pretrained(built)
        parts = [built]
        if role.adapter is not None and role.source is not None:
            _save_adapter(role, built / "adapter")
            parts.append(built / "adapter")
        for part in parts:
            tokenizer.save_pretrained(part)
            if offset is not None:
                (part / SIDECAR).write_text(json.dumps({"offset": offset}) + "\n")
        _move_in(built, folder)


def plain_model(role: Role) -> Any:
    """The role as an ordinary transformers model on the CPU, its adapter merged; the role itself is left as it is."""
    with torch.device("meta"):
        plain = type(role.model)(copy.deepcopy(role.model.config))
    plain.load_state_dict(merged_state(role.model, role.adapter), assign=True)
    plain.tie_weights()  # tied weights come off a GPU as two tensors
    plain.generation_config = copy.deepcopy(getattr(role.model, "generation_config", None))
    return plain


def _tell_end_tokens(model: Any, eos_ids: tuple[int, ...]) -> None:
    told = model.generation_config.eos_token_id
    # An untouched configuration is saved as it was found, with whatever transformers would refuse in a new one.
    if set(told if isinstance(told, list) else [told]) != set(eos_ids):
        model.generation_config.eos_token_id = list(eos_ids)


def _tell_padding(model: Any, tokenizer: Any, eos_ids: tuple[int, ...]) -> None:
    """Pad, on the right, with a token that ends no response: a decoder's score is read at the last token that is not padding."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in eos_ids:
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in eos_ids:
            tokenizer.pad_token = tokenizer.unk_token
        else:
            tokenizer.add_special_tokens({"pad_token": NEW_PAD_TOKEN})
        if tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings:
            rows = model.resize_token_embeddings(len(tokenizer), mean_resizing=False).weight
            rows.data[tokenizer.pad_token_id :] = 0
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id


def adapter_key(role: Role, name: str) -> str:
    """What peft calls one of the role's own weights in an adapter's file."""
    return f"base_model.model.{name.replace(f'.{role.adapter}.weight', '.weight')}"


def _save_adapter(role: Role, folder: Path) -> None:
    assert role.adapter is not None
    folder.mkdir()
    tensors = {adapter_key(role, name): parameter.detach().cpu().contiguous() for name, parameter in role.weights().items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    scalar = hasattr(role.model, "score")
    config = copy.deepcopy(role.backbone.configs[role.adapter])
    config.base_model_name_or_path = role.source
    config.inference_mode = True
    config.task_type = "SEQ_CLS" if scalar else "CAUSAL_LM"
    config.modules_to_save = ["score"] if scalar else None
    config.save_pretrained(str(folder))


def _move_in(built: Path, folder: Path) -> None:
    files = sorted(path.relative_to(built) for path in built.rglob("*") if path.is_file())
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        os.replace(built / file, folder / file)
    # Weights of an earlier save under other names would be loaded in place of these, or beside them.
    for old in (*folder.glob("model*.safetensors*"), *folder.glob("adapter/*")):
        if old.relative_to(folder) not in files:
            old.unlink()
