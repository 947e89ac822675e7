"""A pipeline's weights: share them, replace them, tell two pipelines apart. Import from ``erasebench.diffusion``."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from erasebench.types import Pipeline

VOLATILE = ("architectures", "transformers_version", "dtype", "torch_dtype")  # config keys that change no image


def fork(pipe: Pipeline) -> Pipeline:
    """A second pipeline with its own module tree that shares every tensor with ``pipe``: it costs no memory.

    Edit a fork by putting a new parameter in place of the old one, never in place of its values::

        module.weight = nn.Parameter(new, requires_grad=False)

    The scheduler is copied (it has state), the tokenizer is shared, and so is a ``guide`` (it cannot change). The
    ``edit_matrix`` of a closed-form edit is not: a fork is there to be edited again.
    Parameters are new objects on the same storage, so ``requires_grad`` may be set on a fork.
    """
    new = copy.copy(pipe)
    vars(new).pop("edit_matrix", None)
    for name, part in _modules(pipe).items():
        memo: dict[int, Any] = {
            id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in part.parameters()
        }
        memo |= {id(b): b.detach() for b in part.buffers()}
        memo |= {id(p): nn.Parameter(p.detach(), p.requires_grad) for hook in _beside(part) for p in hook.parameters()}
        setattr(new, name, copy.deepcopy(part, memo))
    new.scheduler = copy.deepcopy(pipe.scheduler)
    return new


def cross_attention_projections(pipe: Pipeline) -> dict[str, nn.Linear]:
    """The key and value matrices of every cross-attention, in the order of ``unet.named_modules()``.

    These are what closed-form erasure edits: ``W_k, W_v: [inner, width]``, no bias, 32 of them in Stable Diffusion 1.4.

    Returns:
        module name (``down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k``) -> the linear layer.

    Raises:
        ValueError: the UNet has no text cross-attention.
    """
    ends = ("attn2.to_k", "attn2.to_v")
    found = {n: m for n, m in pipe.unet.named_modules() if n.endswith(ends) and isinstance(m, nn.Linear)}
    if not found:
        raise ValueError("unet must have cross-attention layers attn2.to_k and attn2.to_v; found none")
    return found


def edited_weight(layer: nn.Linear, edit: torch.Tensor) -> nn.Parameter:
    """``W T`` computed in float64 and cast to the dtype and device of the layer, as a new parameter without gradient.

    Raises:
        ArithmeticError: the edited weight is not finite in the layer's dtype.
    """
    weight = (weight64(layer) @ edit).to(layer.weight.dtype)
    if not torch.isfinite(weight).all():
        raise ArithmeticError(
            f"edited weight must be finite in {weight.dtype}; got nan or inf; raise lamb or the dtype"
        )
    return nn.Parameter(weight.to(layer.weight.device), requires_grad=False)


def weight64(layer: nn.Linear) -> torch.Tensor:
    """The layer's weight [o, d] as float64 on the CPU."""
    return layer.weight.detach().to("cpu", torch.float64)


def apply_matrix(original: Pipeline, edit: torch.Tensor) -> Pipeline:
    """``fork(original)`` with every cross-attention key and value weight W [o, d] replaced by W T, T [d, d] float64.

    Raises:
        ValueError: T has another width than the projections, or there are none.
        ArithmeticError: an edited weight is not finite.
    """
    pipe = fork(original)
    for name, layer in cross_attention_projections(pipe).items():
        if edit.shape != (layer.in_features, layer.in_features):
            raise ValueError(
                f"matrix must be {layer.in_features} wide as {name}; got {list(edit.shape)}; check its model"
            )
        layer.weight = edited_weight(layer, edit)
    return pipe


def fingerprint(pipe: Pipeline, beside: Pipeline | None = None) -> str:
    """Hash of everything a pipeline's images depend on: 16 hex digits, equal for equal weights and configs.

    With ``beside``, of which ``pipe`` is a fork, tensors that are that one's own count by name alone: quick, and enough
    to see whether ``pipe`` is changed while ``beside`` is watched too.

    Covers weights (names, dtypes, shapes, bytes), hooks and configs of UNet, VAE and text encoders, the scheduler's
    config and the tokenizers' vocabularies. Independent of device, folder and library version; float16 and float32
    copies differ.
    """
    digest = hashlib.sha256()
    for name, part in sorted(_modules(pipe).items()):
        digest.update(_line(name, type(part).__name__, _config(part), _hooked(part)))
        shared = _tensors(getattr(beside, name)) if beside is not None else {}
        for key, tensor in sorted(_tensors(part).items()):
            digest.update(_line(key, str(tensor.dtype), list(tensor.shape)))
            if key in shared and tensor.data_ptr() == shared[key].data_ptr() and tensor.shape == shared[key].shape:
                continue
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    digest.update(_line("scheduler", type(pipe.scheduler).__name__, _config(pipe.scheduler)))
    for name, part in sorted(pipe.components.items()):
        if name.startswith("tokenizer") and part is not None:
            vocabulary = sorted(part.get_vocab().items())
            digest.update(_line(name, vocabulary, part.model_max_length, part.pad_token_id))
    return digest.hexdigest()[:16]


def changed_tensors(pipe: Pipeline, original: Pipeline) -> dict[str, torch.Tensor]:
    """The tensors of ``pipe`` that differ from ``original``, e.g. ``unet.mid_block....attn2.to_k.weight``.

    What an erasure is stored as: ``apply_tensors(original, changed_tensors(pipe, original))`` equals ``pipe``. Tensors
    that share storage are not compared, so this is instant for a lightly edited fork.

    Raises:
        ValueError: the two are not of the same architecture.
    """
    changed: dict[str, torch.Tensor] = {}
    for name, part in _modules(pipe).items():
        new, old = part.state_dict(), getattr(original, name).state_dict()
        unmatched = sorted(
            {k for k in new.keys() | old.keys() if k not in new or k not in old or new[k].shape != old[k].shape}
        )
        if unmatched:
            raise ValueError(f"{name} must have the architecture of the original model; {unmatched[0]} does not match")
        changed |= {f"{name}.{key}": new[key] for key in new if not _same(new[key], old[key])}
    return changed


def apply_tensors(original: Pipeline, tensors: Mapping[str, torch.Tensor]) -> Pipeline:
    """``fork(original)`` with some tensors replaced (cast to the replaced tensor's dtype and device).

    Raises:
        ValueError: a name the pipeline does not have, or a shape that does not fit.
    """
    pipe = fork(original)
    for name, new in tensors.items():
        part, _, key = name.partition(".")
        path, _, leaf = key.rpartition(".")
        module = _modules(pipe).get(part)
        owner = None if module is None else dict(module.named_modules()).get(path)
        old = getattr(owner, leaf, None)
        if not isinstance(old, torch.Tensor):
            raise ValueError(f"tensor {name} does not exist in this pipeline; apply it to the model it was made from")
        if old.shape != new.shape:
            raise ValueError(f"tensor {name} must have shape {list(old.shape)}; got {list(new.shape)}")
        value = new.detach().to(device=old.device, dtype=old.dtype)
        setattr(owner, leaf, nn.Parameter(value, requires_grad=False) if isinstance(old, nn.Parameter) else value)
    return pipe


def _modules(pipe: Pipeline) -> dict[str, nn.Module]:
    """The parts that have weights: unet, vae, text_encoder and, in SDXL, text_encoder_2."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.stride() == b.stride():
        return True
    return a.dtype == b.dtype and torch.equal(a, b.to(a.device))


def _hooked(part: nn.Module) -> list[str]:
    """Modules with a forward hook, which changes images as weights do; transformers' own, which only record, apart."""
    return [
        name
        for name, module in part.named_modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if not str(getattr(getattr(hook, "func", hook), "__module__", "")).startswith("transformers.")
    ]


def _beside(part: nn.Module) -> list[nn.Module]:
    """Hooks that are modules with weights of their own: adapters."""
    return [h for m in part.modules() for h in m._forward_hooks.values() if isinstance(h, nn.Module)]


def _tensors(part: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor that a part's answers depend on, those of adapters behind its own."""
    found: dict[str, torch.Tensor] = part.state_dict()
    beside = (h.state_dict() for h in _beside(part))
    return found | {f"~{i}.{key}": tensor for i, held in enumerate(beside) for key, tensor in held.items()}


def _config(part: Any) -> dict[str, Any]:
    """A config without paths and versions; transformers' defaults are left out, for they change between versions."""
    config = part.config
    values = config.to_diff_dict() if hasattr(config, "to_diff_dict") else dict(config)
    return {k: v for k, v in values.items() if not k.startswith("_") and k not in VOLATILE}


def _line(*values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, default=str).encode() + b"\n"
