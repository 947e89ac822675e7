"""Evaluators' networks beside the packages' own loops on the same images, with the same results; FID's memory.

    python -m benchmarks.evaluators speed [--images 64] [--rounds 3]
    python -m benchmarks.evaluators memory [--images 1000 10000 30000]
    python -m benchmarks.evaluators passes [--images 32] [--rounds 3]

``speed``: crops of scikit-image's photograph of an astronaut, 512 x 512, in PNG files. Each line is the package's loop
as its documentation has it, and ours, one after the other in every round; of both the fastest round counts. CPU
seconds are of all threads and hardly depend on what else the machine does, images/s do. Weights are random (NudeNet's
come with it). Results must agree, or nothing is printed. ``memory``: the whole evaluator ``fid``, images read from
shards, 2,048 random features each, a process a size; what no file stands behind (RssAnon), over what was held before.
``passes``: photographs in a store, looked at by NudeNet, Inception (FID) and CLIP ViT-B/32 (CLIP score), random
weights but NudeNet's, one evaluator after the other and all in one pass; LPIPS, which compares pairs, beside them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from erasebench.report.printing import as_markdown
from erasebench.store.images import ImageSet, write_shard
from erasebench.types import Prompt

WIDTH = 2048


def cpu() -> float:
    """Seconds that all threads of this process have computed."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def photographs(folder: Path, n: int) -> list[str]:
    """Files of n crops of one photograph, enlarged to 512 x 512."""
    import skimage.data

    draw, whole = np.random.default_rng(0), Image.fromarray(skimage.data.astronaut())
    files = []
    for i in range(n):
        side = int(draw.integers(200, 512))
        x, y = draw.integers(0, 513 - side, 2)
        whole.crop((x, y, x + side, y + side)).resize((512, 512)).save(folder / f"{i:05}.png", compress_level=1)
        files.append(str(folder / f"{i:05}.png"))
    return files


def opened(files: Sequence[str]) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in files]


Way = Callable[[Sequence[str]], Any]


def nudenet() -> tuple[Way, Way]:
    """NudeDetector.detect of each file; ours of the same files, in its colour order."""
    from nudenet import NudeDetector

    from erasebench.judges.nudenet import detect

    package = NudeDetector()
    return (
        lambda files: [package.detect(file) for file in files],
        lambda files: detect([Image.open(file) for file in files], "path_bgr", "320n", 320),  # decoded in its threads
    )


def random_inception(folder: Path) -> tuple[dict[str, Any], str]:
    """Weights of Inception's shape, and their file."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    save_file(network.state_dict(), folder / "inception.safetensors")
    return network.state_dict(), str(folder / "inception.safetensors")


def pytorch_fid(folder: Path) -> tuple[Way, Way]:
    """pytorch-fid's get_activations at its batch of 50 in this process; ours with its convention."""
    from pytorch_fid import fid_score, inception

    from erasebench.judges.inception import Inception

    state, path = random_inception(folder)
    inception.load_state_dict_from_url = lambda *_, **__: state
    package, ours = inception.InceptionV3([3]), Inception(weights=path, convention="pytorch_fid", device="cpu")
    return (
        lambda files: fid_score.get_activations(list(files), package, num_workers=0),
        lambda files: ours.features(opened(files)),
    )


def clean_fid(folder: Path) -> tuple[Way, Way]:
    """clean-fid's get_files_features, mode clean, with pytorch-fid's layers (its own are a download); ours."""
    import torch
    from cleanfid.fid import get_files_features
    from pytorch_fid import inception

    from erasebench.judges.inception import Inception

    state, path = random_inception(folder)
    inception.load_state_dict_from_url = lambda *_, **__: state
    blocks, ours = (
        inception.InceptionV3([3]).eval().blocks,
        Inception(weights=path, convention="clean_fid", device="cpu"),
    )

    def layers(x: torch.Tensor) -> torch.Tensor:
        x = (x - 128) / 128
        for block in blocks:
            x = block(x)
        return x.reshape(len(x), WIDTH)

    options = {"num_workers": 0, "batch_size": 32, "device": "cpu", "mode": "clean", "verbose": False}
    return lambda files: get_files_features(list(files), layers, **options), lambda files: ours.features(opened(files))


def same(theirs: Any, ours: Any) -> str:
    """How far two results are apart, in words."""
    if isinstance(theirs, list):
        if theirs != ours:
            raise SystemExit("results differ: nothing is compared")
        return "identical"
    apart = float(np.abs(np.asarray(theirs) - ours).max() / np.abs(theirs).mean())
    if apart > 1e-2:
        raise SystemExit(f"results differ by {apart}: nothing is compared")
    return f"{apart:.0e} of the mean apart"


def speed(n: int, rounds: int) -> list[list[str]]:
    lines = [["what", "package images/s", "ours images/s", "times", "package CPU s/image", "ours", "results"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = photographs(folder, n)
        made = {
            "NudeNet 3.4, 320n": (nudenet(), files),
            "Inception, pytorch-fid": (pytorch_fid(folder), files[: max(8, n // 4)]),
            "Inception, clean-fid": (clean_fid(folder), files[: max(8, n // 4)]),
        }
        for what, (ways, chosen) in made.items():
            results = [way(chosen[:4]) for way in ways]  # loads weights, fills caches
            best = [[np.inf, np.inf], [np.inf, np.inf]]
            for _ in range(rounds):
                for i, way in enumerate(ways):
                    started, used = time.perf_counter(), cpu()
                    results[i] = way(chosen)
                    spent = time.perf_counter() - started, cpu() - used
                    best[i] = [min(a, b) for a, b in zip(best[i], spent, strict=True)]
            (wall, busy), (our_wall, our_busy) = (np.array(b) / len(chosen) for b in best)
            told = [
                f"{1 / wall:.1f}",
                f"{1 / our_wall:.1f}",
                f"{wall / our_wall:.2f}",
                f"{busy:.3f}",
                f"{our_busy:.3f}",
            ]
            lines.append([what, *told, same(*results)])
    return lines


def random_clip(folder: Path) -> str:
    """A folder of CLIP ViT-B/32's shape with random weights and Stable Diffusion's tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from benchmarks.erase import sd14_tokenizer

    torch.manual_seed(0)
    CLIPModel(CLIPConfig()).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    sd14_tokenizer().save_pretrained(folder)
    return str(folder)


def stored(folder: Path, pictures: Sequence[Image.Image]) -> ImageSet:
    """Pictures as a run keeps them."""
    prompts = [Prompt(id=str(i), text=f"a photo {i}", seed=i, group="coco", concept="x") for i in range(len(pictures))]
    rows = [(prompt.digest(), picture, "ok") for prompt, picture in zip(prompts, pictures, strict=True)]
    write_shard(folder, 0, rows)  # type: ignore[arg-type]
    return ImageSet(key=str(folder), folder=folder, prompts=tuple(prompts))


def passes(n: int, rounds: int) -> list[list[str]]:
    """Images/s and CPU seconds an image of each evaluator alone, of all one after the other, and in one pass."""
    import torchvision
    from safetensors.torch import save_file

    from erasebench.judges import activations
    from erasebench.judges.clip import TransformersClip
    from erasebench.judges.inception import Inception
    from erasebench.judges.looking import one_pass
    from evaluators import nudenet as nudity
    from evaluators.clip_score import ClipScore
    from evaluators.fid import FID
    from evaluators.lpips import LPIPS

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for part in ("photographs", "clip", "images"):
            (root / part).mkdir()
        images = stored(root / "images", opened(photographs(root / "photographs", n)))
        alexnet = torchvision.models.alexnet(weights=None).state_dict()
        save_file(alexnet, root / "alexnet.safetensors")
        clip = TransformersClip(path=random_clip(root / "clip"), device="cpu")
        inception = Inception(weights=random_inception(root)[1], device="cpu")
        alone = {
            "NudeNet 3.4, 320n": nudity.NudeNet(groups=("coco",)), "FID, Inception": FID(features=inception),
            "CLIP score, ViT-B/32": ClipScore(model=clip),
            "LPIPS, 64 px and whole": LPIPS(weights=str(root / "alexnet.safetensors"), device="cpu"),
        }  # fmt: skip
        looking = [e for e in alone.values() if not isinstance(e, LPIPS)]

        def afresh() -> None:
            activations._held.clear()
            nudity._failed.clear()
            for file in (images.folder / "detections").glob("*"):
                file.unlink()

        def together() -> None:
            one_pass([look for e in looking for look in e.looks], images)
            for evaluator in looking:
                evaluator.score(images, images)

        ways: dict[str, Callable[[], Any]] = {what: partial(e.score, images, images) for what, e in alone.items()}
        ways["the first three, one after the other"] = lambda: [e.score(images, images) for e in looking]
        ways["the first three, in one pass"] = together
        best = dict.fromkeys(ways, (np.inf, np.inf))
        for turn in range(rounds + 1):
            for what, way in ways.items():
                afresh()
                started, used = time.perf_counter(), cpu()
                way()
                spent = time.perf_counter() - started, cpu() - used
                if turn:  # the first loads weights
                    best[what] = (min(best[what][0], spent[0]), min(best[what][1], spent[1]))
    lines = [["what", "images/s", "CPU s/image"]]
    return lines + [[what, f"{n / wall:.1f}", f"{busy / n:.3f}"] for what, (wall, busy) in best.items()]


def held() -> float:
    """MB of memory that no file stands behind."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split("RssAnon:")[1].split()[0]) / 1024


class Drawn:
    """2,048 features drawn by an image's own pixels."""

    name = "drawn"

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        seeds = [int.from_bytes(np.asarray(image).tobytes()[:8], "little") for image in images]
        rows = [np.random.default_rng(seed).standard_normal(WIDTH, dtype=np.float32) for seed in seeds]
        return np.stack(rows) * np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5

    def reference(self) -> tuple[np.ndarray, np.ndarray, int]:
        return np.zeros(WIDTH), np.diag(1.0 / np.arange(1, WIDTH + 1)), 30_000


def measured(n: int) -> dict[str, float]:
    """The evaluator over n images of 8 x 8; value, seconds and MB."""
    from evaluators.fid import FID

    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder, prompts = Path(name), []
        for start in range(0, n, 1024):
            rows = []
            for i in range(start, min(n, start + 1024)):
                prompt = Prompt(id=str(i), text=str(i), seed=i, group="coco")
                rows.append((prompt.digest(), Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)), "ok"))
                prompts.append(prompt)
            write_shard(folder, start, rows)  # type: ignore[arg-type]
        images = ImageSet(key=name, folder=folder, prompts=tuple(prompts))
        before, most, done = held(), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                most[0] = max(most[0], held())

        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.perf_counter()
        whole = FID(features=Drawn()).score(images, images)[0]
        seconds = time.perf_counter() - started
        done.set()
        watcher.join()
    return {"value": whole.value, "seconds": seconds, "MB": most[0] - before}


def memory(sizes: Sequence[int]) -> list[list[str]]:
    lines = [["images", "FID of noise", "seconds", "MB"]]
    for n in sizes:
        command = [sys.executable, "-m", "benchmarks.evaluators", "one", "--images", str(n)]
        found = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
        lines.append([f"{n:,}", f"{found['value']:.4f}", f"{found['seconds']:.0f}", f"{found['MB']:.0f}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "passes", "one"), nargs="?", default="speed")
    parser.add_argument("--images", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.what == "one":
        print(json.dumps(measured(given.images[0])))
    elif given.what == "memory":
        print(as_markdown(memory(given.images or [1000, 10_000, 30_000])))
    elif given.what == "passes":
        print(as_markdown(passes((given.images or [32])[0], given.rounds)))
    else:
        print(as_markdown(speed((given.images or [64])[0], given.rounds)))


if __name__ == "__main__":
    main()
