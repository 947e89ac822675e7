"""LoRA files as changes of weights: ``W + scale * alpha / rank * B A``, without peft.

Hu et al., arXiv:2106.09685. Two families of names are read: that of peft and diffusers
(``unet.<module>.lora_A.weight``, older ``.lora.down.weight`` and ``processor.to_q_lora.down.weight``) and that of kohya
(``lora_unet_<module with underscores>.lora_down.weight``), for linear and convolutional layers of the UNet or
transformer and the text encoders. Modules of a transformer have diffusers' names (``transformer.<module>``); kohya's
own, of another layout, are refused. alpha is the file's own tensor, else that of the settings peft left beside it
(``adapter_config.json``) or diffusers in its metadata, with their patterns; without any it is the rank, as diffusers
has it.
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
Settings = Mapping[str, Any]  # of peft, as in adapter_config.json
DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight",
        ".lora_linear_layer.down.weight", "_lora.down.weight")  # fmt: skip
UP = (".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight",
      ".lora_linear_layer.up.weight", "_lora.up.weight")  # fmt: skip
OTHER = re.compile(r"dora_scale|lora_magnitude_vector|hada_|lokr_|lora_mid|\.oft_|\.diff(_b)?$")
KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
         "lora_transformer_": "transformer"}  # fmt: skip

UNMERGEABLE = (
    "use_dora", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip


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
    shapes: Mapping[str, Shape], settings: Mapping[str, Settings], model: Mapping[str, Shape]
) -> dict[str, Adapter]:
    """Canonical name of each changed weight -> its adapter, once every one fits the model.

    Args:
        shapes: of the file's tensors, by their plain names.
        settings: of each part, see :func:`part_settings`.
        model: canonical names and shapes of the model's tensors, see ``erasebench.diffusion.headers``.

    Raises:
        ValueError: the first layer the model does not have, or whose sizes differ, with both; half an adapter; another
            rank than the settings say; another kind of adapter (DoRA, LoHa, LoKr, PiSSA, ...), by tensor or setting.
    """
    for part, setting in settings.items():
        refuse_unmergeable(part, setting)
    sides: dict[str, dict[str, str]] = {}
    base = "transformer" if any(name.startswith("transformer.") for name in model) else "unet"
    by_underscores = {re.sub(r"\.", "_", name): name for name in model if name.endswith(".weight")}
    for name in shapes:
        if OTHER.search(name):
            raise ValueError(f"lora must be a plain LoRA; got {name}; merge it with its own tool, then give the folder")
        stem, side = _split(name)
        sides.setdefault(_weight(stem, by_underscores, base), {})[side] = name
    found = {}
    for weight, names in sides.items():
        if not {"down", "up"} <= set(names):
            raise ValueError(f"lora must have both halves of {weight}; got {', '.join(names.values())}; save it again")
        _check_fit(weight, shapes[names["down"]], shapes[names["up"]], model)
        alpha, rooted = _alpha(weight, settings, shapes[names["down"]][0])
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


def _weight(stem: str, by_underscores: Mapping[str, str], base: str) -> str:
    """Canonical name of the weight that a stem changes; a stem without a part is the denoiser's, ``base``."""
    for prefix, part in KOHYA.items():
        if stem.startswith(prefix):
            flat = f"{part}_{stem.removeprefix(prefix).removeprefix('text_model_')}_weight"
            return by_underscores.get(flat, f"{part}.{stem.removeprefix(prefix)}.weight")
    module = (
        stem.removeprefix("base_model.model.").replace(".processor.to_out", ".to_out.0").replace(".processor.", ".")
    )
    part, _, rest = module.partition(".")
    if part not in ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3"):
        part, rest = "text_encoder" if part == "text_model" else base, module
    if part not in ("unet", "transformer"):
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


def part_settings(metadata: Mapping[str, str], adapter: Settings | None) -> dict[str, Settings]:
    """peft's settings by part of the pipeline, "" for all: of an ``adapter_config.json``, else of diffusers' metadata.

    >>> part_settings({"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 8}'}, None)
    {'unet': {'r': 4, 'lora_alpha': 8}}
    """
    if adapter is not None:
        return {"": adapter}
    try:
        said = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise ValueError(f"lora_adapter_metadata of the file must be JSON; got {error}; save the LoRA again") from None
    found: dict[str, dict[str, Any]] = {}
    for name, value in said.items():
        part, _, setting = name.partition(".")
        found.setdefault(part, {})[setting] = value
    return dict(found)


def refuse_unmergeable(part: str, settings: Settings) -> None:
    """Refuse settings of peft under which a weight is not ``W + alpha / r B A``."""
    where = f"{part}." if part else "adapter_config.json: "
    kind, start, bias = (settings.get(name) for name in ("peft_type", "init_lora_weights", "bias"))
    odd = [name for name in UNMERGEABLE if settings.get(name)]
    if kind not in (None, "LORA"):
        odd.insert(0, f"peft_type {kind}")
    if isinstance(start, str) and start.lower() not in ("gaussian", "eva", "orthogonal", "true", "false"):
        odd.append(f"init_lora_weights {start}")  # the base itself was changed when the training began
    if bias not in (None, "none"):
        odd.append(f"bias {bias}")
    if odd:
        raise ValueError(
            f"{where}the adapter must be a plain LoRA; got {', '.join(odd)}; merge it with peft (merge_and_unload) and "
            "give the merged weights"
        )


def _alpha(weight: str, settings: Mapping[str, Settings], rank: int) -> tuple[float | None, bool]:
    """alpha of a weight and whether it is rank-stabilised; None without settings.

    As in peft, the first pattern that matches the end of a module's name decides.
    """
    part, _, rest = weight.removesuffix(".weight").partition(".")
    said = settings.get(part, settings.get(""))
    if said is None:
        return None, False
    names = (rest, f"text_model.{rest}")

    def value(pattern: str, default: Any) -> Any:
        for key, own in (said.get(pattern) or {}).items():
            if any(re.match(rf"(.*\.)?({key})$", name) for name in names):
                return own
        return default

    expected, alpha = value("rank_pattern", said.get("r")), value("alpha_pattern", said.get("lora_alpha"))
    if expected is not None and expected != rank:
        raise ValueError(
            f"adapter must have rank {expected} in {weight.removesuffix('.weight')}, as its settings say; got {rank}; "
            "use the settings it was saved with"
        )
    return alpha, bool(said.get("use_rslora"))
