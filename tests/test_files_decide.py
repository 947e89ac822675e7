"""Fourteen kinds of files decide a run's numbers: change one, and exactly the steps that depend on it are made anew."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.numpy import load_file, save_file

import erasebench
from erasebench.store.files import locate

ALL = ("classifier", "asr", "clip_score", "fid", "nudenet", "redness")
SEEN = {  # evaluator -> groups of these prompts that it looks at
    "classifier": {"target", "coco", "attack"}, "asr": {"target", "attack"}, "clip_score": {"target", "coco"},
    "fid": {"coco"}, "nudenet": {"target", "attack"}, "redness": {"coco"},
}  # fmt: skip
CODE = {
    "decided_helper.py": "FACTOR = 0.5\n",
    "decided_method.py": '''
from dataclasses import dataclass
from pathlib import Path

import torch

from decided_helper import FACTOR
from erasebench import diffusion
from erasebench.protocols import Method


@dataclass(frozen=True, kw_only=True)
class Damp(Method):
    """Scale the first cross-attention layers by a number of a file."""

    path: str

    def erase(self, pipe, concept):
        erased = diffusion.fork(pipe)
        for name in list(diffusion.cross_attention_projections(erased))[:4]:
            layer = erased.unet.get_submodule(name)
            factor = FACTOR * float(Path(self.path).read_text())
            layer.weight = torch.nn.Parameter(layer.weight * factor, requires_grad=False)
        return erased
''',
    "decided_evaluator.py": '''
from dataclasses import dataclass
from typing import ClassVar

from PIL import ImageStat

from erasebench.protocols import Evaluator
from erasebench.types import Score


@dataclass(frozen=True, kw_only=True)
class Redness(Evaluator):
    """Mean of the red channel."""

    groups: tuple = ("coco",)
    version: ClassVar[int] = 1

    def score(self, images, original):
        for batch in images.batches():
            for prompt, image, status in batch:
                value = ImageStat.Stat(image).mean[0] + 0.0
                place = {"group": prompt.group, "prompt_id": prompt.id, "status": status}
                yield Score(evaluator="redness", metric="red", judge="mean", value=value, **place)
''',
    "conf/method/damp.yaml": "_target_: decided_method.Damp\npath: ???\n",
    "conf/evaluator/redness.yaml": "redness:\n  _target_: decided_evaluator.Redness\n",
}


class Kind(NamedTuple):
    """A file, what is done to it, and what depends on it."""

    file: str
    edit: str  # what is appended, or "old->new"; "" writes tensors again with other metadata
    steps: frozenset[str] = frozenset()  # of erase, attack, images whose keys are others
    drawn: bool = False
    scores: tuple[str, ...] = ()


def by_group(*groups: str) -> tuple[str, ...]:
    return tuple(name for name in ALL if SEEN[name] & set(groups))


MODEL, ERASED, ATTACK = (frozenset(s) for s in (("erase", "attack", "images"), ("erase", "images"), ("attack",)))
KINDS = {
    "weights": Kind("model/unet/diffusion_pytorch_model.safetensors", "", MODEL, True, ALL),
    "scheduler": Kind("model/scheduler/scheduler_config.json", "\n", MODEL, True, ALL),
    "tokenizer": Kind("model/tokenizer/tokenizer_config.json", "\n", MODEL, True, ALL),
    "method": Kind("decided_method.py", "[:4]->[:3]", ERASED, True, ALL),
    "helper": Kind("decided_helper.py", "0.5->0.6", ERASED, True, ALL),
    "a file the method reads": Kind("factor.txt", "1.0->0.9", ERASED, True, ALL),
    "prompts": Kind("prompts.csv", "cat->kitten", ATTACK, True, by_group("target", "attack")),
    "kept prompts": Kind("kept.csv", "dog->lion", frozenset(), True, by_group("coco")),
    "attack": Kind("attack.csv", "feline->kitty", ATTACK, True, by_group("attack")),
    "judge": Kind("judge/classifier/model.safetensors", "", scores=("classifier", "asr")),
    "clip": Kind("clip/contrastive/model.safetensors", "", scores=("clip_score",)),
    "reference": Kind("features/reference/features.safetensors", "", scores=("fid",)),
    "detector": Kind("detector.onnx", "\xc0\x3e\x01", scores=("nudenet",)),  # a field that no reader of ONNX knows
    "evaluator": Kind("decided_evaluator.py", "+ 0.0->+ 1.0", scores=("redness",)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    weights = locate("pkg:erasebench/emoji/weights")
    for name in ("model", "judge", "clip", "features"):
        shutil.copytree(weights, root / name)
    detector = Path(importlib.util.find_spec("nudenet").submodule_search_locations[0]) / "320n.onnx"
    shutil.copy(detector, root / "detector.onnx")
    for name, text in CODE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    head = "prompt,evaluation_seed,evaluation_guidance\n"
    for name, words in {"prompts": ["a cat", "one cat"], "kept": ["a dog", "a tree"], "attack": ["a feline"]}.items():
        (root / f"{name}.csv").write_text(head + "".join(f"{word},{i},3\n" for i, word in enumerate(words)))
    (root / "factor.txt").write_text("1.0")
    return root


def run(root):
    for name in [name for name in sys.modules if name.startswith("decided_")]:
        del sys.modules[name]  # a new process would read them again
    names = ",".join(ALL)
    return erasebench.run(
        "method=damp", f"method.path={root}/factor.txt", "name=damp", f"model.path={root}/model", "model.name=mine",
        "model.steps=2", "model.batch_size=2", "prompts=csv", f"prompts.path={root}/prompts.csv", "prompts@kept=csv",
        f"kept.path={root}/kept.csv", "kept.group=coco", "attack=csv", f"attack.path={root}/attack.csv",
        f"evaluator=[{names}]", f"judge.weights={root}/judge", f"clip.weights={root}/clip",
        f"features.weights={root}/features", f"evaluator.nudenet.weights={root}/detector.onnx",
        f"results={root}/results", config_dir=root / "conf",
    )  # fmt: skip


def edit(path: Path, how: str) -> None:
    if not how:
        save_file(load_file(path), path, metadata={"note": "written again"})
        return
    old, arrow, new = how.partition("->")
    data = path.read_bytes()
    assert not arrow or old.encode() in data
    path.write_bytes(data.replace(old.encode(), new.encode()) if arrow else data + how.encode("latin-1"))


@pytest.mark.slow
def test_what_depends_on_a_file_is_made_anew_and_nothing_else(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    before = run(folder)
    assert not before.cached and run(folder).cached
    assert len(KINDS) >= 12
    for name, kind in KINDS.items():
        path = folder / kind.file
        whole, stat = path.read_bytes(), path.stat()
        edit(path, kind.edit)
        after = run(folder)
        assert not after.cached, name
        a, b = before.record["stored"], after.record["stored"]
        assert {step for step in ("erase", "attack", "images") if a[step] != b[step]} == kind.steps, name
        assert (after.record["steps"]["draw"]["images"] > 0) == kind.drawn, name
        changed = {ALL[i // 2] for i, (x, y) in enumerate(zip(a["score"], b["score"], strict=True)) if x != y}
        assert changed == set(kind.scores), name
        path.write_bytes(whole)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        if name not in ("weights", "evaluator"):
            continue
        again = run(folder)  # as before: nothing is made at all
        assert all(step["cached"] for step_name, step in again.record["steps"].items() if step_name != "load"), name
        assert again.record["stored"] == a
