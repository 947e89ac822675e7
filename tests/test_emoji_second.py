"""Training of the second edition, on numbers small enough to follow: what an oracle may know, resuming, encoders."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from erasebench import diffusion
from erasebench.emoji.classifier import EmojiJudge
from erasebench.emoji.contrastive import load_contrastive
from erasebench.emoji.networks import Contrastive, vision_encoder
from erasebench.emoji.training import parts, world
from erasebench.emoji.training.second import grammar, reading, stages, texts
from erasebench.emoji.training.second.loop import Trainer, together
from erasebench.emoji.training.second.stock import Stock, _padded
from erasebench.store.files import locate
from erasebench.types import Prompt

LABELS, SHIPPED = ["red heart", "anchor"], "pkg:erasebench/emoji/weights2"


def a_stock(codes: list[str], style: list[int]) -> Stock:
    """A stock without pictures whose captions have these codes and styles."""
    rows, listed, n = texts.members(LABELS), texts.codes(LABELS), len(codes)
    none = torch.zeros(0)
    return Stock(
        sprites=torch.zeros(len(texts.THINGS) + len(LABELS) + 1, 4, 4, 2, 2, dtype=torch.uint8), colours=none,
        captions=torch.zeros(n, 48, dtype=torch.int16), glosses=none,
        code=torch.tensor([listed.index(c) for c in codes]), style=torch.tensor(style),
        place=torch.full((n,), -1), members=_padded(rows, torch.device("cpu")),
        counts=torch.tensor([len(r) for r in rows]), choices=torch.arange(n), styles=torch.arange(4), names=none,
        labels=none, end=9,
    )  # fmt: skip


def drawn(stock: Stock, n: int = 3000):
    return stock.sample(torch.Generator().manual_seed(0), n)


def test_a_caption_is_drawn_as_what_it_says():
    stock = a_stock(["cat", "pet", "*", "nothing", ""], [0, -1, -1, -1, 2])
    b, n = drawn(stock), len(texts.THINGS)
    pets = {texts.THINGS.index(name) for name in ("cat", "dog", "rabbit")}
    assert set(b.picture[b.caption == 0].tolist()) == {0} and set(b.style[b.caption == 0].tolist()) == {0}
    assert set(b.picture[b.caption == 1].tolist()) == pets
    assert set(b.picture[b.caption == 2].tolist()) == {n, n + 1}
    assert set(b.picture[b.caption == 3].tolist()) == {n + 2}
    assert set(b.picture[b.caption == 4].tolist()) == set(range(n)) and set(b.style[b.caption == 4].tolist()) == {2}
    assert stock.matches(b).diagonal().min() == 1


def test_what_an_oracle_never_knew_is_in_no_caption_and_no_picture():
    stock = a_stock(["cat", "pet", "big cat", "", "dog"], [-1, -1, -1, -1, 3])
    b = drawn(stock.without(("cat",)))
    assert not (b.picture == texts.THINGS.index("cat")).any() and set(b.caption.tolist()) == {1, 2, 3, 4}
    b = drawn(stock.without(("ink",)))
    assert not (b.style == texts.STYLES.index("ink")).any() and 4 not in b.caption
    b = drawn(stock.without(("tiger", "lion")))
    assert 2 not in b.caption  # a group without members is not drawn as something else


def test_frequent_captions_come_three_times():
    stock = a_stock(["cat", "dog"], [-1, -1])
    assert sorted(stock.without((), often=("cat",)).choices.tolist()) == [0, 0, 0, 1]


def test_rows_are_what_the_text_encoder_returns():
    config = CLIPTextConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                            num_attention_heads=4, eos_token_id=49, bos_token_id=48, pad_token_id=49)  # fmt: skip
    text = CLIPTextModel(config).eval()
    ids = torch.tensor([[48, 3, 4, 49, 49], [48, 7, 49, 49, 49]])
    model = Contrastive(text, vision_encoder().eval())
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(reading.rows(text, ids), text(ids).last_hidden_state, atol=1e-5)
        assert torch.allclose(reading.seen(model, pictures), model.image(pictures), atol=1e-5)


def a_trainer(folder, name="toy", **more):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss(g: torch.Generator) -> torch.Tensor:
        x = torch.randn(16, 3, generator=g)
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    return Trainer(name, model, loss, folder, **{"steps": 300, "lr": 0.05, "warmup": 5, "ema": 0.9} | more)


def test_a_training_learns_and_a_stopped_one_goes_on_as_if_it_had_not(tmp_path):
    together([a_trainer(tmp_path / "whole")])
    stopped = a_trainer(tmp_path / "two", every=120)
    for _ in range(150):
        stopped.advance()
    together([a_trainer(tmp_path / "two")])
    whole, resumed = (load_file(tmp_path / f / "toy" / "final.safetensors") for f in ("whole", "two"))
    assert torch.allclose(whole["weight"], torch.ones(1, 3), atol=0.02)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_trainings_side_by_side_end_together_and_within_a_limit(tmp_path):
    short, long = a_trainer(tmp_path, "short", steps=400), a_trainer(tmp_path, "long", steps=800)
    together([short, long], limit=1e-3)
    assert (short.step, long.step) == (short.steps, long.steps)
    assert short.steps < 400 and long.steps < 800


def test_the_shapes_are_those_the_weights_have():
    assert stages.VARIANT in reading.VARIANTS
    assert parts.unet(16, 384).config.cross_attention_dim == 384


def test_shipped_weights_are_small_and_half_precision():
    files = [f for f in locate(SHIPPED).rglob("*") if f.is_file()]
    oracles = sum(f.stat().st_size for f in locate("pkg:erasebench/emoji/oracles").glob("*"))
    assert sum(f.stat().st_size for f in files) + oracles <= 40e6
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".txt"}


@pytest.mark.slow
def test_the_shipped_model_draws_sentences_it_has_not_read():
    names = list(world.things())[::7]
    said = [grammar.HELD_OUT[3 * i].format(c=n, s="noto", b="blue") for i, n in enumerate(names)]
    prompts = [Prompt(id=n, text=t, seed=40 + i) for i, (n, t) in enumerate(zip(names, said, strict=True))]
    drawn = diffusion.generate(diffusion.load(locate(SHIPPED)), prompts, steps=12, guidance_scale=3.0)
    verdicts = EmojiJudge()([image for _, image, _ in drawn], names)
    assert sum(v.present for v in verdicts) >= len(names) - 2  # measured in full by emoji.quality


def test_its_contrastive_model_tells_a_synonym_from_another_concept():
    clip, names = load_contrastive(SHIPPED), list(world.things())
    words = clip.text_features([f"a {n}" for n in names])
    found = (clip.text_features([f"a {t.synonyms[0]}" for t in world.things().values()]) @ words.T).argmax(1)
    assert (found == range(len(names))).mean() >= 0.95


def test_edition_one_refuses_a_gpu(tmp_path, monkeypatch, capsys):
    from erasebench.emoji.training import train

    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path), "--device", "cuda"])
    with pytest.raises(SystemExit):
        train.main()
    assert "edition 2 trains on cuda" in capsys.readouterr().err
