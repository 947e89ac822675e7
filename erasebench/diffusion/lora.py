"""LoRA files as changes of weights: ``W + scale * alpha / rank * B A``, without peft.

Hu et al., arXiv:2106.09685. Two families of names are read: that of peft and diffusers
(``unet.<module>.lora_A.weight``, older ``.lora.down.weight`` and ``processor.to_q_lora.down.weight``) and that of kohya
(``lora_unet_<module with underscores>.lora_down.weight``), for linear and convolutional layers of the UNet and the text
encoders. alpha is the file's own tensor, else its metadata's, else the rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]
DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight",
        ".lora_linear_layer.down.weight", "_lora.down.weight")  # fmt: skip
UP = (".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight",
      ".lora_linear_layer.up.weight", "_lora.up.weight")  # fmt: skip
OTHER = re.compile(r"dora_scale|lora_magnitude_vector|hada_|lokr_|lora_mid|\.oft_|\.diff(_b)?$")
KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One layer's change: its tensors' names in the file, and alpha's (or its value from the metadata)."""

    down: str
    up: str
    alpha: str | float | None = None
    rooted: bool = False  # rank-stabilised: alpha / sqrt(rank)


def is_lora(names: Iterable[str]) -> bool:
    """Whether a file's tensors are a LoRA's, or of its relatives.

    >>> is_lora(["unet.mid_block.x.to_k.lora_A.weight"]), is_lora(["mid_block.x.to_k.weight"])
    (True, False)
    """
    return any(name.endswith((*DOWN, *UP)) or OTHER.search(name) is not None for name in names)


def adapters(
    shapes: Mapping[str, Shape], metadata: Mapping[str, str], model: Mapping[str, Shape]
) -> dict[str, Adapter]:
    """Canonical name of each changed weight -> its adapter, once every one fits the model.

    Args:
        shapes: of the file's tensors.
        metadata: of the file.
        model: canonical names and shapes of the model's tensors, see ``erasebench.diffusion.headers``.

    Raises:
        ValueError: the first layer the model does not have, or whose sizes differ, with both; half an adapter;
            another kind of adapter (DoRA, LoHa, LoKr, ...).
    """
    sides: dict[str, dict[str, str]] = {}
    by_underscores = {re.sub(r"\.", "_", name): name for name in model if name.endswith(".weight")}
    for name in shapes:
        if OTHER.search(name):
            raise ValueError(f"lora must be a plain LoRA; got {name}; merge it with its own tool, then give the folder")
        stem, side = _split(name)
        sides.setdefault(_weight(stem, by_underscores), {})[side] = name
    found = {}
    for weight, names in sides.items():
        if not {"down", "up"} <= set(names):
            raise ValueError(f"lora must have both halves of {weight}; got {', '.join(names.values())}; save it again")
        _check_fit(weight, shapes[names["down"]], shapes[names["up"]], model)
        alpha, rooted = _alpha(weight, metadata)
        alpha_name = names.get("alpha")
        found[weight] = Adapter(
            down=names["down"], up=names["up"], alpha=alpha if alpha_name is None else alpha_name,
            rooted=rooted and alpha_name is None,
        )  # fmt: skip
    return found


def merged(weight: Tensor, adapter: Adapter, tensors: Mapping[str, Tensor], scale: float) -> Tensor:
    """``W + scale * alpha / rank * B A``, computed in float64 on the CPU, in the dtype and on the device of W.

    Args:
        weight: W [out, in] of a linear layer or [out, in, k, k] of a convolution.
        tensors: the file's, by name: A [rank, in(, k, k)] and B [out, rank(, 1, 1)].
        scale: the user's factor; 1 is the LoRA as trained.
    """
    down, up = (tensors[name].to("cpu", torch.float64).flatten(1) for name in (adapter.down, adapter.up))
    rank = len(down)
    alpha = float(tensors[adapter.alpha]) if isinstance(adapter.alpha, str) else adapter.alpha
    factor = 1.0 if alpha is None else alpha / (math.sqrt(rank) if adapter.rooted else rank)
    change = (scale * factor) * (up @ down)
    return (weight.to("cpu", torch.float64) + change.reshape(weight.shape)).to(weight.dtype).to(weight.device)


def _split(name: str) -> tuple[str, str]:
    for side, ends in (("down", DOWN), ("up", UP), ("alpha", (".alpha",))):
        for end in ends:
            if name.endswith(end):
                return name.removesuffix(end), side
    raise ValueError(f"lora must hold pairs of low-rank tensors only; got {name}; save it with diffusers or kohya")


def _weight(stem: str, by_underscores: Mapping[str, str]) -> str:
    """Canonical name of the weight that a stem changes; a stem without a part is the UNet's."""
    for prefix, part in KOHYA.items():
        if stem.startswith(prefix):
            flat = f"{part}_{stem.removeprefix(prefix).removeprefix('text_model_')}_weight"
            return by_underscores.get(flat, f"{part}.{stem.removeprefix(prefix)}.weight")
    module = (
        stem.removeprefix("base_model.model.").replace(".processor.to_out", ".to_out.0").replace(".processor.", ".")
    )
    part, _, rest = module.partition(".")
    if part not in ("unet", "text_encoder", "text_encoder_2"):
        part, rest = "unet", module
    if part != "unet":
        rest = rest.removeprefix("text_model.")
    return f"{part}.{rest}.weight"


def _check_fit(weight: str, down: Shape, up: Shape, model: Mapping[str, Shape]) -> None:
    module = weight.removesuffix(".weight")
    if weight not in model:
        raise ValueError(f"lora must be for this base model, which has no layer {module}; use the base it was made for")
    out, inputs = model[weight][0], math.prod(model[weight][1:])
    given = (up[0], math.prod(down[1:]))
    if given != (out, inputs) or down[0] != math.prod(up[1:]):
        raise ValueError(
            f"lora must be for this base model, whose layer {module} is {list(model[weight])}; got {list(up)} x "
            f"{list(down)}; use the base it was made for"
        )


def _alpha(weight: str, metadata: Mapping[str, str]) -> tuple[float | None, bool]:
    """alpha and whether it is rank-stabilised, as diffusers saves peft's settings: ``unet.lora_alpha`` and patterns."""
    try:
        settings: dict[str, Any] = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return None, False
    part, _, rest = weight.removesuffix(".weight").partition(".")
    alpha = settings.get(f"{part}.lora_alpha")
    for pattern, value in (settings.get(f"{part}.alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", rest):
            alpha = value
    return alpha, bool(settings.get(f"{part}.use_rslora"))
