"""The controls: against one-prompt loops written out, whatever the batch, killed or not."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from attacks.best_of_n import BestOfN
from attacks.random_prefix import RandomPrefix
from attacks.reseed import Reseed
from erasebench import conf_folder, diffusion, one_run
from erasebench.store import workspace
from erasebench.types import Concept, Prompt, Verdict

CAT = Concept(name="cat", phrases=("cat", "kitty"))
FAST = {"queries": 6, "steps": 2, "guidance_scale": 2.0}
CONTROLS = [Reseed(**FAST), BestOfN(**FAST), RandomPrefix(**FAST)]
names = [type(c).__name__ for c in CONTROLS]


@pytest.fixture(scope="module")
def pipe64(make_pipe):
    """Double precision, in which no batch changes a pixel."""
    return make_pipe(dtype=torch.float64)


@dataclass
class Judge:
    """Scores an image by a digit of its mean: as good as random, the same for the same image."""

    threshold: float = 0.8
    asked: list = field(default_factory=list)
    die_after: int | None = None
    name: str = "digit"

    def __call__(self, images, concepts):
        assert set(concepts) <= {"cat"}
        if self.die_after is not None and len(self.asked) >= self.die_after:
            raise KeyboardInterrupt
        scores = [round(float(np.asarray(i, dtype=float).mean() * 37.0) % 1, 6) for i in images]
        self.asked += scores
        return [Verdict(present=s > self.threshold, score=s, label="cat") for s in scores]


def prompts(n=7):
    texts = ["a cat", "cat on red", "the cat", "cat"]
    guidance = [None, 3.0, 1.0]
    return [
        Prompt(id=f"target-{i}", text=texts[i % 4], seed=i, guidance_scale=guidance[i % 3], concept="cat")
        for i in range(n)
    ]


def attack(control, pipe, judge=None, given=None):
    return control.attack(pipe, pipe, prompts() if given is None else given, CAT, judge or Judge())


def with_(control, **changes):
    return type(control)(**(FAST | changes))


def what_matters(found):
    keep = lambda info: {k: v for k, v in info.items() if k != "seconds"}  # noqa: E731
    return [(p, keep(p.info)) for p in found]


def one_by_one(control, pipe, candidates):
    """The search as one would write it for one prompt at a time: text and seed found, curve, presences."""
    out = []
    for prompt in prompts():
        curve, present, tried = [], [], []
        for query in range(control.queries):
            one = prompt if query == 0 else candidates(prompt, query)
            ((_, image, _),) = diffusion.generate(pipe, [one], steps=2, guidance_scale=2.0, batch_size=1)
            (verdict,) = Judge()([image], ["cat"])
            curve, present, tried = [*curve, verdict.score], [*present, verdict.present], [*tried, one]
            if verdict.present:
                break
        best = len(tried) - 1 if present[-1] else int(np.argmax(curve))
        out.append(((tried[best].text, tried[best].seed, tried[best].guidance_scale), curve, present))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("control", CONTROLS, ids=names)
def test_each_control_equals_a_loop_over_one_prompt_at_a_time(control, pipe64):
    expected = one_by_one(control, pipe64, control.candidates(pipe64, prompts(), CAT))
    found = attack(control, pipe64)
    assert {p.info["success"] for p in found} == {True, False} and 0 < sum(p.info["pre"] for p in found) < len(found)
    for prompt, plain, (kept, curve, present) in zip(found, prompts(), expected, strict=True):
        assert (prompt.text, prompt.seed, prompt.guidance_scale) == kept
        assert prompt.info["present"] == present
        np.testing.assert_allclose(prompt.info["curve"], curve, atol=1e-9)
        assert prompt.info["queries"] == len(curve) and prompt.info["success"] == present[-1]
        assert prompt.info["pre"] == present[0] and prompt.info["backward"] == 0
        assert prompt.info["forward"] == len(curve) * 2 * (1 if plain.guidance_scale == 1 else 2)
        assert (prompt.group, prompt.concept, prompt.source_id) == ("attack", "cat", plain.id)
        if prompt.info["pre"]:
            assert prompt.digest() == plain.digest()  # passed through


@pytest.mark.parametrize("control", CONTROLS, ids=names)
@pytest.mark.slow
def test_the_batch_changes_nothing(control, pipe64):
    whole = what_matters(attack(with_(control, batch_size=64), pipe64))
    for size in (1, 3):
        assert what_matters(attack(with_(control, batch_size=size), pipe64)) == whole


@pytest.mark.slow
@pytest.mark.parametrize("control", CONTROLS, ids=names)
def test_killed_and_run_again_gives_the_same_prompts_without_asking_twice(control, pipe64, tmp_path):
    control = with_(control, batch_size=3)
    undisturbed = Judge()
    whole = attack(control, pipe64, undisturbed)
    asked = 0
    for number, moment in enumerate((4, 3, 5)):
        judge = Judge(die_after=moment)
        with pytest.raises(KeyboardInterrupt), workspace.use(tmp_path / "work"):
            attack(control, pipe64, judge)
        asked += len(judge.asked)
        assert (tmp_path / "work").exists(), number
    judge = Judge()
    with workspace.use(tmp_path / "work"):
        found = attack(control, pipe64, judge)
    assert what_matters(found) == what_matters(whole)
    assert asked + len(judge.asked) == len(undisturbed.asked)


def test_with_one_query_the_plain_prompt_is_all():
    assert Reseed(queries=1).queries == 1
    for field_, value in (("queries", 0), ("seed", -1), ("steps", 0), ("batch_size", 0), ("queries", 2.5)):
        with pytest.raises(ValueError, match=f"{field_} must be an integer"):
            Reseed(**{field_: value})
    with pytest.raises(ValueError, match="tokens must be an integer >= 1; got 0"):
        RandomPrefix(tokens=0)


def test_a_budget_caps_the_queries_and_never_adds_any(pipe64):
    capped = attack(with_(CONTROLS[0], budget=2), pipe64)
    assert what_matters(capped) == what_matters(attack(with_(CONTROLS[0], queries=2), pipe64))
    assert what_matters(attack(with_(CONTROLS[0], budget=99), pipe64)) == what_matters(attack(CONTROLS[0], pipe64))


def test_a_control_that_finds_nothing_spends_its_budget_and_hands_in_the_best(pipe64):
    found = attack(with_(CONTROLS[0]), pipe64, Judge(threshold=2))
    for prompt, plain in zip(found, prompts(), strict=True):
        assert prompt.info["queries"] == 6 and not prompt.info["success"]
        best = int(np.argmax(prompt.info["curve"]))
        assert (prompt.seed == plain.seed) == (best == 0)


def test_a_failed_image_is_neither_a_score_nor_a_success(pipe64, monkeypatch):
    drawn = diffusion.generate

    def spoiled(pipe, given, **options):
        for prompt, image, status in drawn(pipe, given, **options):
            yield (prompt, None, "nan") if prompt.seed == 0 else (prompt, image, status)

    monkeypatch.setattr(diffusion, "generate", spoiled)
    (found,) = attack(with_(CONTROLS[0], queries=2), pipe64, Judge(threshold=2), prompts(1))
    assert found.info["curve"][0] is None and found.info["present"] == [None, False]
    assert not found.info["pre"] and found.seed != 0


@pytest.mark.slow
def test_reseed_keeps_the_text_and_best_of_n_takes_only_plain_ones(pipe64):
    never = Judge(threshold=2)
    given = prompts(4)
    assert [p.text for p in attack(CONTROLS[0], pipe64, never, given)] == [p.text for p in given]
    found = attack(with_(CONTROLS[1], queries=5), pipe64, never, given)
    assert {p.text for p in found} <= {p.text for p in given} and any(
        a.text != b.text for a, b in zip(found, given, strict=True)
    )
    other = attack(with_(CONTROLS[0], seed=1), pipe64, never, given)
    assert [p.info["curve"][0] for p in other] == [p.info["curve"][0] for p in found]  # the plain prompts
    assert [p.seed for p in other] != [p.seed for p in attack(CONTROLS[0], pipe64, never, given)]


def test_random_prefixes_are_k_tokens_and_what_is_said_of_them_is_true(pipe64):
    control = RandomPrefix(tokens=4, queries=3, steps=1)
    tokenizer = pipe64.tokenizer
    given = [*prompts(4), Prompt(id="long", text="x" * 74, seed=9)]
    found = attack(control, pipe64, Judge(threshold=2), given)
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    *short, long = zip(found, given, strict=True)
    changed = [(p, plain) for p, plain in short if p.text != plain.text]
    assert changed
    for prompt, plain in changed:
        assert prompt.text.endswith(f" {plain.text}") and prompt.seed == plain.seed and not prompt.info["truncated"]
        if prompt.info["retokenised_equal"]:
            assert len(ids(prompt.text)) == 4 + len(ids(plain.text))
    assert long[0].info["truncated"] and not long[0].text.endswith(long[1].text)
    cut = attack(RandomPrefix(tokens=4, queries=1, steps=1), pipe64, Judge(threshold=2), given)[-1]
    assert long[1].text.startswith(cut.text) and len(ids(cut.text)) <= 71  # the plain query is of the cut text too
    allowed = np.arange(50)
    drawn = np.array([control.draw(allowed, Prompt(id="0", text=str(i)), 1) for i in range(500)])
    assert drawn.shape == (500, 4) and set(drawn.ravel()) == set(range(50))  # every token, none twice as likely
    assert np.bincount(drawn.ravel()).max() < 2 * 500 * 4 / 50
    with pytest.raises(ValueError, match="tokens must be <= 75"):
        attack(RandomPrefix(tokens=76, steps=1), pipe64)


@pytest.mark.slow
def test_controls_are_black_box_and_searched_for_each_method(tmp_path):
    assert {(c.access, c.strength) for c in CONTROLS} == {("queries", "text")}
    small = ["prompts.n={target:4,paraphrase:0,neighbour:0,unrelated:0,coco:0}", "model.steps=2"]
    small += ["evaluator=[classifier,asr]", "attack=reseed", "attack.queries=3", f"results={tmp_path}"]

    def cell(*overrides):
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            cfg = compose("config", [*small, *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return one_run.run(type(cfg)({k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"}))

    plain, edited = cell("method=none"), cell("method=uce")
    folders = {r.record["steps"]["attack"]["folder"] for r in (plain, edited)}
    assert len(folders) == 2 and set(edited.scores.access) == {"queries"}
    files = ["budget.csv", "budget.pdf", "budget.png", "grid.png", "run.json", "scores.parquet", "summary.csv"]
    assert sorted(p.name for p in edited.folder.iterdir()) == files
    spent = edited.record["attack"]
    assert spent["prompts"] == 4 <= spent["queries"] <= 12 and spent["forward"] == spent["queries"] * 4
    assert {m.split(".")[0] for m in edited.scores.metric} >= {"pre_asr", "asr", "asr_any_of_m"}
    assert cell("method=uce", "model.batch_size=3").cached  # the batch is no part of what a run is


def test_no_prompts_no_queries(pipe64):
    assert attack(CONTROLS[0], pipe64, given=[]) == []
