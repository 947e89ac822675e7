"""Seconds and memory of UCE and RECE at the exact shape of Stable Diffusion 1.4, beside the layer-by-layer way.

    python -m benchmarks.erase [--threads 2] [--repeats 3] [--naive-layers 2]

The UNet has Stable Diffusion 1.4's architecture (859.5 M parameters, 32 cross-attention K/V matrices of width 768) and
the text encoder is shaped as CLIP ViT-L/14's; both have random weights, on which the cost of a dense edit does not
depend. Only what an edit reads is filled: the text encoder and the K/V matrices. The rest of the UNet is allocated and
never touched, so it takes no memory here. The tokenizer is byte-level, which does not change the 77 rows of a text.

"Extra memory" is the highest resident size during the call minus the one before it, sampled every 2 ms, after memory
freed earlier was handed back to the system (Linux with glibc). CPU seconds add up all threads: on a machine that is
busy with other work they are the fairer figure.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from erasebench.diffusion import cross_attention_projections, encode, fork, last_token
from erasebench.types import Concept, Pipeline
from methods.rece import RECE
from methods.uce import UCE

NUDITY = Concept(name="nudity", kind="unsafe", phrases=("nudity",))


def sd14_shape(vocabulary: int = 514) -> Pipeline:
    """A pipeline of Stable Diffusion 1.4's shape with random weights in everything an edit reads.

    Its tokenizer knows the bytes and, beyond 514 tokens, words that no text has.
    """
    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=768,
            attention_head_dim=8,
        )
    unet.to_empty(device="cpu")
    tokenizer = sd14_tokenizer(vocabulary)
    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(),
        text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **shape, **ids)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (pipe.unet, pipe.text_encoder):
        part.eval().requires_grad_(False)
    for layer in cross_attention_projections(pipe).values():
        layer.weight.normal_(std=layer.in_features**-0.5)
    return pipe


def sd14_tokenizer(vocabulary: int = 514) -> CLIPTokenizer:
    """A byte-level tokenizer of 77 tokens; beyond 514 of its vocabulary are words that no text has."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), *(f"word{i}</w>" for i in range(vocabulary - 514))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


@torch.no_grad()
def naive_uce(pipe: Pipeline, layers: int) -> tuple[dict[str, torch.Tensor], int]:
    """UCE of one concept to " " as the papers' programs do it, for the first ``layers`` K/V matrices only.

    For every layer each text is encoded again, values are computed for all layers and most of them thrown away, sums
    are stacks of outer products, and the system is inverted in float32.

    Returns the edited weights and how many layers there are.
    """
    projections = cross_attention_projections(pipe)
    edited = {}
    for name in list(projections)[:layers]:
        weight = projections[name].weight
        left, right = 0.5 * weight, 0.5 * torch.eye(weight.shape[1])
        for text, target in (("nudity", " "), ("", "")):
            old, new = encode(pipe, [text])[0], encode(pipe, [target])[0]
            if text:
                start, to = (int(i) for i in last_token(pipe, [text, target]))
                old, new = old[start:], new[to : to + len(old) - start]
            values = {other: layer(new) for other, layer in projections.items()}
            left = left + (values[name][:, :, None] @ old[:, None, :]).sum(0)
            right = right + (old[:, :, None] @ old[:, None, :]).sum(0)
        edited[name] = left @ torch.inverse(right)
    return edited, len(projections)


@torch.no_grad()
def naive_derive(pipe: Pipeline, layers: int) -> None:
    """RECE's embedding in float32, summed over the first ``layers`` matrices; the solve is not counted by layer."""
    weights = [layer.weight for layer in list(cross_attention_projections(pipe).values())[:layers]]
    square = sum((w.T @ w for w in weights), 0.1 * torch.eye(768))
    cross = sum((w.T @ w for w in weights), torch.zeros(768, 768))
    encode(pipe, ["nudity"])[0] @ (torch.inverse(square) @ cross).T


class Meter:
    """Seconds, CPU seconds of all threads, and extra resident memory of a block."""

    def __enter__(self) -> Meter:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._before = self._peak = _resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self._start, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds, self.cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
        self._stop.set()
        self._thread.join()
        self.megabytes = (max(self._peak, _resident()) - self._before) / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self._peak = max(self._peak, _resident())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measured(call: Callable[[], Any], repeats: int) -> str:
    """Fewest seconds, fewest CPU seconds and most extra memory of some calls, as three columns."""
    meters = []
    for _ in range(repeats):
        with Meter() as meter:
            call()
        meters.append(meter)
    seconds, cpu = min(m.seconds for m in meters), min(m.cpu for m in meters)
    return f"{seconds:10.2f}{cpu:10.2f}{max(m.megabytes for m in meters):10.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--naive-layers", type=int, default=2, help="layers to run layer by layer; 0 leaves it out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipe = sd14_shape()
    encode(pipe, ["warm up"])
    uce = UCE(anchor=" ")
    rece = RECE(start=uce, anchor=" ", preserve=(" ",))
    parameters = sum(parameter.numel() for parameter in pipe.unet.parameters()) / 1e6
    print(f"UNet {parameters:.1f} M, {options.threads} threads, torch {torch.__version__}, best of {options.repeats}")
    print(f"{'':46}{'seconds':>10}{'CPU s':>10}{'extra MB':>10}")
    for name, call in (
        ("encode 2 texts", lambda: encode(pipe, ["nudity", ""])),
        ("copy the module tree, share all tensors", lambda: fork(pipe)),
        ("uce, one concept", lambda: uce.erase(pipe, NUDITY)),
        ("rece, uce and 3 epochs", lambda: rece.erase(pipe, NUDITY)),
    ):
        print(f"{name:46}{measured(call, options.repeats)}")
    if options.naive_layers:
        report_naive(pipe, uce, options.naive_layers)


def report_naive(pipe: Pipeline, uce: UCE, layers: int) -> None:
    with Meter() as meter:
        edited, total = naive_uce(pipe, layers)
    with Meter() as derivation:
        naive_derive(pipe, layers)
    name = f"layer by layer, uce, {len(edited)} of {total} layers"
    print(f"{name:46}{meter.seconds:10.2f}{meter.cpu:10.2f}{meter.megabytes:10.0f}")
    factor = total / len(edited)
    for name, seconds, cpu in (
        ("uce", meter.seconds, meter.cpu),
        ("rece, uce and 3 epochs", 4 * meter.seconds + 3 * derivation.seconds, 4 * meter.cpu + 3 * derivation.cpu),
    ):
        print(f"{'  scaled to all layers: ' + name:46}{seconds * factor:10.2f}{cpu * factor:10.2f}")
    exact = cross_attention_projections(uce.erase(pipe, NUDITY))
    error = max(float((w - exact[n].weight).norm() / exact[n].weight.norm()) for n, w in edited.items())
    print(f"relative error it leaves in the weights (float32 inverse): {error:.1e}")


if __name__ == "__main__":
    main()
