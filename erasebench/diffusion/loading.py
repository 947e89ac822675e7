"""Load a diffusers pipeline, after checking from the outside that it can be one; pickled weights are refused.

Everything that can be wrong with a folder is said in one line before the first weight is read. Import these names
from ``erasebench.diffusion``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from erasebench import fields
from erasebench.devices import check_device
from erasebench.diffusion.flow import denoiser
from erasebench.diffusion.offloading import OFFLOADS
from erasebench.diffusion.schedulers import check_scheduler, scheduler_of
from erasebench.store.files import tensor_header
from erasebench.types import Pipeline

CLASSES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # never loaded: they would censor or cost memory
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
TOKENIZER_FILES = ("tokenizer_config.json", ("tokenizer.json", "vocab.json"))


def load(
    path: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    scheduler: str | None = None,
    vae_tiling: bool | None = None,
    channels_last: bool | None = None,
    offload: str | None = None,
) -> Pipeline:
    """A Stable Diffusion 1.x, 2.x, XL or 3 or a FLUX pipeline in eval mode, without gradients or a safety checker.

    Weights are cast to ``dtype`` whatever the files hold, so half-precision files load as float32 by default. The
    safety checker is left out because it would replace the very images a benchmark of erasure must count.

    Args:
        path: a diffusers folder (``model_index.json`` and one subfolder per part, weights in safetensors), or a hub
            id ``owner/name``.
        revision: the hub commit, 40 hex digits; needed for a hub id, so that a table says which weights it measured.
            Ignored for a folder, whose weights are identified by ``fingerprint``.
        dtype: float32, float16, bfloat16 or float64.
        device: a torch device, e.g. ``cpu`` or ``cuda:0``; ``auto`` is a GPU if there is one.
        vae_tiling: decode latents in overlapping tiles where they are larger than the VAE was trained on: less memory,
            slightly different images.
        channels_last: keep the channels of UNet and VAE last, as GPUs' half-precision convolutions want them.
        offload: ``model`` or ``sequential``: the parts, or their layers, wait on the CPU and are on the GPU while they
            are asked, by diffusers' own hooks (:func:`erasebench.diffusion.offloading.offloaded`).
        scheduler: a sampler by name (``diffusion.schedulers.scheduler_of``), or None for the model's own.

    Raises:
        FileNotFoundError: neither a folder nor a hub id, or a folder that lacks a file.
        ValueError: a pipeline of another class, pickled weights, broken safetensors, an unpinned hub id, an unknown
            dtype, a device this machine does not have.
        OSError: the hub could not deliver.
    """
    fields.choice("model.dtype", dtype, DTYPES)
    check_scheduler(scheduler)
    where = check_device("model.device", device)
    if offload is not None:
        fields.choice("model.offload", offload, OFFLOADS)
    if offload is not None and not where.startswith("cuda"):
        raise ValueError(f"model.offload must be null without a GPU; got {offload}; leave it out, or set model.device")
    pipe = _load(path, revision, dtype, "cpu" if offload else where)
    if offload is not None:
        pipe.offload = (offload, where)
    if scheduler is not None:
        pipe.scheduler = scheduler_of(pipe, scheduler)
    return switched(pipe, vae_tiling=vae_tiling, channels_last=channels_last)


def switched(pipe: Pipeline, *, vae_tiling: bool | None = None, channels_last: bool | None = None) -> Pipeline:
    """``pipe`` itself with switches of memory and layout turned on, see :func:`load`."""
    if vae_tiling:
        pipe.vae.enable_tiling()
    if channels_last:
        for part in (denoiser(pipe), pipe.vae):
            part.to(memory_format=torch.channels_last)
    return pipe


def _load(path: str | Path, revision: str | None, dtype: str, device: str) -> Pipeline:
    """The pipeline with its own sampler, from a folder or the hub."""
    source = Path(path).expanduser()
    if source.is_dir():
        index = check_folder(source)
        options: dict[str, Any] = {"variant": "fp16"} if _only_fp16(source, index) else {}
        return _read(str(source), index, dtype, device, options)
    _check_hub_id(str(path), source, revision)
    from diffusers import DiffusionPipeline

    try:
        index = dict(DiffusionPipeline.load_config(str(path), revision=revision))
        _check_class(str(path), index)
        return _read(str(path), index, dtype, device, {"revision": revision})
    except OSError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"model {path} at revision {revision} could not be read from the hub: {reason}; check the network and "
            f"your access, or download it and pass the folder as model.path"
        ) from error


def check_folder(folder: Path) -> dict[str, Any]:
    """The content of ``model_index.json``, once everything it names is there and readable without pickle.

    Raises:
        FileNotFoundError, ValueError: as for ``load``; no weight has been read.
    """
    file = folder / "model_index.json"
    if not file.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        raise FileNotFoundError(
            f"model folder {folder} is no diffusers pipeline: it has no model_index.json; found {found}; "
            f"make one with pipe.save_pretrained(folder, safe_serialization=True)"
        )
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} must be JSON; got {error}; save the pipeline again") from None
    _check_class(str(folder), index)
    missing = [part for part in _parts(index) if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"model folder {folder} is incomplete: model_index.json names {', '.join(missing)}, "
            f"but there is no such subfolder; copy the whole pipeline"
        )
    for part in _parts(index):
        _check_part(folder / part)
    return index


def _parts(index: Mapping[str, Any]) -> list[str]:
    """Names of the parts that are loaded: entries ``[library, class]`` of model_index.json, absent ones left out."""
    named = {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2 and v[0] is not None}
    return [name for name in named if name not in UNUSED]


def _check_class(name: str, index: Any) -> None:
    found = index.get("_class_name") if isinstance(index, dict) else None
    if found not in CLASSES:
        raise ValueError(f"model {name} must be a {' or '.join(CLASSES)}; model_index.json says {found!r}")
    denoises = "unet" if found in CLASSES[:2] else "transformer"
    needed = {denoises, "vae", "text_encoder", "tokenizer", "scheduler"} - set(_parts(index))
    if needed:
        raise ValueError(f"model {name} must have {', '.join(sorted(needed))}; model_index.json does not name it")


def _check_part(folder: Path) -> None:
    """One subfolder: its config is there, and its weights, if it has any, are sound safetensors."""
    if folder.name.startswith("tokenizer"):
        configs: tuple[str | tuple[str, ...], ...] = TOKENIZER_FILES
    else:
        configs = ("scheduler_config.json" if folder.name == "scheduler" else "config.json",)
    for config in configs:
        names = (config,) if isinstance(config, str) else config
        if not any((folder / name).is_file() for name in names):
            raise FileNotFoundError(f"model part {folder} has no {' or '.join(names)}; copy the whole pipeline")
    if folder.name.startswith("tokenizer") or folder.name == "scheduler":
        return
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = [p.name for p in sorted(folder.iterdir()) if p.suffix.lower() in PICKLES]
        if pickled:
            raise ValueError(_refusal(folder / pickled[0]))
        raise FileNotFoundError(f"model part {folder} has no weights (*.safetensors); copy the whole pipeline")
    for file in weights:
        tensor_header(file)  # catches cut-off downloads and git-lfs pointers


def _check_hub_id(name: str, source: Path, revision: str | None) -> None:
    """Not a folder: a lone weights file is refused with advice, a hub id needs its commit, the rest does not exist."""
    suffix = source.suffix.lower()
    if suffix in PICKLES:
        raise ValueError(_refusal(source))
    if suffix == ".safetensors" and source.is_file():
        raise ValueError(
            f"model {name} must be a diffusers folder; got a single file; convert it with "
            f"StableDiffusionPipeline.from_single_file({name!r}).save_pretrained(folder)"
        )
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or source.exists():
        what = "a file" if source.is_file() else "no such folder"
        raise FileNotFoundError(f"model {name} must be a diffusers folder or a hub id owner/name; got {what}")
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"model {name} is no folder here, and a hub id needs a pinned revision (a commit of 40 hex digits); "
            f"got {revision!r}; set model.revision"
        )


def _refusal(file: Path) -> str:
    return (
        f"model weights {file} are pickled and could run code when read, so they are refused; where you trust them, "
        f"load them with diffusers and write safetensors: pipe.save_pretrained(folder, safe_serialization=True)"
    )


def _only_fp16(folder: Path, index: Mapping[str, Any]) -> bool:
    """Whether some part has its weights under half-precision names (``model.fp16.safetensors``) alone."""
    names = [[p.name for p in (folder / part).glob("*.safetensors")] for part in _parts(index)]
    return any(part and all(".fp16" in name for name in part) for part in names)


def _read(name: str, index: Mapping[str, Any], dtype: str, device: str, options: Mapping[str, Any]) -> Pipeline:
    import diffusers

    absent: dict[str, Any] = {part: None for part in UNUSED if part in index}
    if index["_class_name"] == "StableDiffusionPipeline":
        absent |= {"safety_checker": None, "requires_safety_checker": False}
    with _no_progress_bars():
        pipe = getattr(diffusers, index["_class_name"]).from_pretrained(
            name, dtype=DTYPES[dtype], use_safetensors=True, **absent, **options
        )
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """diffusers and transformers each draw their own bar while loading; the run has one of its own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [lib for lib in (diffusers_logging, transformers_logging) if lib.is_progress_bar_enabled()]
    for lib in shown:
        lib.disable_progress_bar()
    try:
        yield
    finally:
        for lib in shown:
            lib.enable_progress_bar()
