"""A stranger's method with a helper file, attack, evaluator and judge: three yamls more, and they appear everywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]

CODE = {
    "eb_helper.py": "FACTOR = 0.5\n",
    "eb_mine.py": '''
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import ImageStat

from eb_helper import FACTOR
from erasebench import diffusion
from erasebench.protocols import Attack, Evaluator, Judge, Method
from erasebench.types import Headline, Score, Verdict


@dataclass(frozen=True, kw_only=True)
class Damp(Method):
    """Scale every cross-attention value."""

    layers: int = 4

    def erase(self, pipe, concept):
        erased = diffusion.fork(pipe)
        for name in list(diffusion.cross_attention_projections(erased))[: self.layers]:
            layer = erased.unet.get_submodule(name)
            layer.weight = torch.nn.Parameter(layer.weight * FACTOR, requires_grad=False)
        return erased


@dataclass(frozen=True, kw_only=True)
class Shout(Attack):
    """The prompt in other words."""

    access: ClassVar = "none"
    strength: ClassVar = "text"
    control: ClassVar = False
    spends: ClassVar = ("times",)
    times: int = 1

    def attack(self, pipe, original, prompts, concept, judge):
        loud = " !" * self.times
        return [p.with_(id=f"shout-{p.id}", text=p.text + loud, group="attack", source_id=p.id) for p in prompts]


@dataclass(frozen=True, kw_only=True)
class Darkness(Judge):
    """Present where the picture is darker than it is bright."""

    about: ClassVar[str] = "mean brightness"
    threshold: float = 128.0

    @property
    def name(self):
        return f"darkness@{self.threshold:g}"

    def check(self, concepts):
        pass

    def __call__(self, images, concepts):
        means = [ImageStat.Stat(image.convert("L")).mean[0] for image in images]
        return [Verdict(present=m < self.threshold, score=1 - m / 255, label="dark") for m in means]


@dataclass(frozen=True, kw_only=True)
class Redness(Evaluator):
    """Share of red in an image."""

    groups: Sequence[str] = ("target", "unrelated")
    version: int = 1
    headlines: ClassVar = (
        Headline(metric="redness.", group="unrelated", label="redness of the rest", head="red", place=5, unit="%"),
    )

    def score(self, images, original):
        rows = []
        for batch in images.only(self.groups).batches():
            for prompt, image, status in batch:
                value = float("nan")
                if image is not None:
                    r, g, b = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
                    value = r / max(1, r + g + b)
                rows.append(
                    Score(evaluator="redness", metric="redness.mean", value=value, group=prompt.group,
                          prompt_id=prompt.id, status=status, higher_is_better=True)
                )
        return rows
''',
}
YAMLS = {
    "method/damp.yaml": "_target_: eb_mine.Damp\nlayers: 4\n",
    "attack/shout.yaml": "_target_: eb_mine.Shout\ntimes: 1\n",
    "judge/darkness.yaml": "_target_: eb_mine.Darkness\nthreshold: 128.0\n",
    "evaluator/redness.yaml": "redness:\n  _target_: eb_mine.Redness\n",
}


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A folder with the files above, and a function that runs the command there and returns what it printed."""
    folder = tmp_path_factory.mktemp("stranger")
    for name, text in CODE.items():
        (folder / name).write_text(text)
    for name, text in YAMLS.items():
        (folder / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "conf" / name).write_text(text)

    def command(*arguments: str) -> str:
        env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return folder, command


def run(command) -> str:
    return command(
        "erasebench", "--config-dir", "conf", "method=damp", "attack=shout", "judge=darkness",
        "evaluator=[classifier,redness]", "model.steps=2", "results=r",
        "prompts.n={target:2,paraphrase:0,neighbour:0,unrelated:2,coco:0}",
    )  # fmt: skip


@pytest.mark.slow
def test_a_strangers_parts_run_and_appear_everywhere(stranger):
    folder, command = stranger
    printed = run(command)
    assert "redness of the rest" in printed and "concept drawn" in printed and "cat erased by damp" in printed
    run_folder = next(folder.glob("r/runs/emoji/cat/damp/shout@*/seed0"))
    scores = pd.read_parquet(run_folder / "scores.parquet")
    mine = scores[scores.evaluator == "redness"]
    assert set(mine[mine.group == "unrelated"].label) == {"redness of the rest"} and set(mine.unit) >= {"%"}
    assert set(scores[scores.evaluator == "classifier"].judge) == {"darkness@128"}
    assert set(scores.strength) == {"text"} and set(scores.access) == {"none"} and not scores.control.any()
    flags = {flag["flag"] for flag in json.loads((run_folder / "run.json").read_text())["flags"]}
    assert "few_prompts" in flags

    board = command("erasebench.leaderboard", "results=r")
    assert "red" in board.splitlines()[1] and "damp" in board and "shout" in board
    assert "red" in pd.read_csv(folder / "r" / "leaderboard_cells.csv").columns

    assert "nothing was computed" in run(command)
    (folder / "eb_helper.py").write_text("FACTOR = 0.25\n")
    again = run(command)
    assert "nothing was computed" not in again
    before = scores[(scores.evaluator == "redness") & (scores.side == "original")].value.to_list()
    after = pd.read_parquet(run_folder / "scores.parquet")
    assert after[(after.evaluator == "redness") & (after.side == "original")].value.to_list() == before
    erased = [f[(f.evaluator == "redness") & (f.side == "erased")].value.to_list() for f in (scores, after)]
    assert erased[0] != erased[1]
