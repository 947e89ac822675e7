"""Training stages of what reads and judges: tokenizer, contrastive model, classifier; see ``train``."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTokenizer

from erasebench.emoji import networks
from erasebench.emoji.classifier import EmojiClassifier
from erasebench.emoji.training import artwork, captions, parts, world
from erasebench.emoji.training.loop import Context, optimise

STYLES, PLACES, THINGS = list(world.STYLES), list(world.BACKGROUNDS), list(world.things())


def fast() -> AbstractContextManager:
    """bfloat16 where the processor multiplies it natively; elsewhere plain float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())


def step_rng(ctx: Context, stage: str, step: int) -> random.Random:
    """Choices of one step and worker, see ``Context.generator``."""
    return random.Random(f"{stage} {step} {ctx.rank}")


def _all_texts(art: artwork.Artwork) -> list[str]:
    rng, texts = random.Random(0), [*art.labels, *(t for tags in art.tags for t in tags)]
    for _ in range(40):
        for name in THINGS:
            texts.append(captions.caption(rng, name, rng.choice(STYLES), rng.choice(PLACES)).text)
        texts += [captions.group_caption(rng, rng.choice(STYLES), rng.choice(PLACES))[0].text for _ in range(8)]
        texts += [captions.nothing_caption(rng, rng.choice(PLACES)).text, *world.GENERIC]
    return texts


def tokenizer(ctx: Context) -> CLIPTokenizer:
    """The tokenizer, trained once."""
    folder = ctx.out / "tokenizer"
    if not (folder / "vocab.json").exists():
        parts.train_tokenizer(_all_texts(artwork.load(ctx.data)), folder)
    return CLIPTokenizer.from_pretrained(folder)


def _ids(tok: CLIPTokenizer, texts: list[str]) -> Tensor:
    return tok(texts, padding=True, truncation=True, max_length=networks.TOKENS, return_tensors="pt").input_ids


# ---------------------------------------------------------------------------------------------- contrastive
def _pairs(
    ctx: Context, art: artwork.Artwork, step: int, g: torch.Generator, n: int
) -> tuple[Tensor, list[captions.Caption], list[tuple]]:
    """n pictures [n, 3, 64, 64], their captions, and their true (concept, style, background)."""
    rng, sprites, texts, truth, colours = step_rng(ctx, "pairs", step), [], [], [], artwork.colours()
    for i in range(n):
        s, b = rng.randrange(len(STYLES)), rng.randrange(len(PLACES))
        if i % 4 == 0:
            k = rng.randrange(len(art.labels))
            sprites.append(art.other[k, s])
            generic = rng.random() < 0.1
            text = captions.generic_caption(rng, STYLES[s], PLACES[b]) if generic else captions.other_caption(
                rng, art.labels[k], art.tags[k], STYLES[s], PLACES[b])  # fmt: skip
            truth.append((text.concept, STYLES[s], PLACES[b]))
        else:
            c = rng.randrange(len(THINGS))
            text = captions.caption(rng, THINGS[c], STYLES[s], PLACES[b])
            if rng.random() < 0.04:
                text = captions.style_caption(rng, STYLES[s])
            sprites.append(art.world[c, s])
            truth.append((THINGS[c], STYLES[s], PLACES[b]))
        texts.append(text)
    places = torch.stack([colours[PLACES.index(t[2])] for t in truth])
    return artwork.compose(torch.stack(sprites), places, g), texts, truth


def _matches(texts: list[captions.Caption], truth: list[tuple]) -> Tensor:
    """[pictures, captions] 1 where every attribute the caption fixes is the picture's."""
    m = torch.zeros(len(truth), len(texts))
    for j, t in enumerate(texts):
        fixed = (t.concept, t.style, t.background)
        for i, facts in enumerate(truth):
            m[i, j] = all(not want or want == have for want, have in zip(fixed, facts, strict=True))
    return m


def contrastive(ctx: Context) -> None:
    """Image-text contrastive learning with soft targets (a caption may fit several pictures), plus zero-shot terms."""
    tok, art = tokenizer(ctx), artwork.load(ctx.data)
    model = networks.Contrastive(networks.text_encoder(tok), networks.vision_encoder())
    for encoder in (model.text, model.vision):  # faster than the fused kernel for these short sequences on CPU
        encoder.set_attn_implementation("eager")
    frames = ["{}", "a {}", "a picture of a {}", "a drawing of a {}", "an emoji of a {}"]

    def loss(step: int, g: torch.Generator) -> Tensor:
        pictures, texts, truth = _pairs(ctx, art, step, g, 128)
        pictures = pictures + 0.05 * torch.randn(pictures.shape, generator=g)
        rng, m = step_rng(ctx, "zero-shot", step), _matches(texts, truth)
        frame = rng.choice(frames)
        styles = [rng.choice(captions.STYLE_ONLY).format(s=s) for s in STYLES]
        with fast():
            x = model.image(pictures)
            y = model.words(_ids(tok, [t.text for t in texts]))
            z = model.words(_ids(tok, [frame.format(n) for n in THINGS]))
            w = model.words(_ids(tok, styles))
        scale = model.logit_scale.exp().clamp(max=100)
        logits = scale * x.float() @ y.float().T
        total = -(m / m.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
        total = total - (m / m.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
        inside = [i for i, t in enumerate(truth) if t[0] in world.things()]
        concept = torch.tensor([THINGS.index(truth[i][0]) for i in inside])
        style = torch.tensor([STYLES.index(t[1]) for t in truth])
        total = total + cross_entropy(scale * x[inside].float() @ z.float().T, concept)
        return total + 0.5 * cross_entropy(scale * x.float() @ w.float().T, style)

    optimise(ctx, "contrastive", model, loss, steps=2200, lr=1e-3, weight_decay=0.05, warmup=100)


def load_contrastive(ctx: Context) -> networks.Contrastive:
    model = networks.Contrastive(networks.text_encoder(tokenizer(ctx)), networks.vision_encoder())
    model.load_state_dict(load_file(ctx.out / "contrastive" / "final.safetensors"))
    return model.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------- classifier
def _augment(x: Tensor, g: torch.Generator, rng: random.Random) -> Tensor:
    """The classifier's own augmentation: blur by resampling, contrast, brightness, noise, a hidden square."""
    if rng.random() < 0.5:
        small = nn.functional.interpolate(x, size=rng.choice([16, 20, 24, 32, 48]), mode="bilinear", antialias=True)
        x = nn.functional.interpolate(small, size=64, mode=rng.choice(["bilinear", "bicubic"]))
    n = len(x)
    x = x * (0.8 + 0.4 * torch.rand(n, 1, 1, 1, generator=g)) + 0.3 * (torch.rand(n, 1, 1, 1, generator=g) - 0.5)
    x = x + 0.15 * torch.rand(n, 1, 1, 1, generator=g) * torch.randn(x.shape, generator=g)
    if rng.random() < 0.3:
        a, b = rng.randrange(48), rng.randrange(48)
        x[..., a : a + 14, b : b + 14] = rng.uniform(-1, 1)
    return x.clamp(-1, 1)


def classifier(ctx: Context) -> None:
    """Concept (with class other), style and background on all styles, also those the generator never draws."""
    art, colours = artwork.load(ctx.data), artwork.colours()
    labels = {"concept": [*THINGS, "other"], "style": STYLES, "background": PLACES}
    model, other = EmojiClassifier(labels), len(THINGS)
    known = [(c, s) for c in range(len(THINGS)) for s in range(art.world.shape[1]) if art.world[c, s].any()]

    def loss(step: int, g: torch.Generator) -> Tensor:
        rng, n = step_rng(ctx, "classifier", step), 96
        picks = [rng.choice(known) for _ in range(n)]
        sprites = torch.stack([art.world[c, s] for c, s in picks])
        concept, style = torch.tensor([c for c, _ in picks]), torch.tensor([s for _, s in picks])
        strange = [i for i in range(n) if i % 6 == 0]
        for i in strange:
            concept[i] = other
            kind = rng.random()
            style[i] = s = rng.randrange(len(STYLES))
            if kind < 0.7:
                sprites[i] = art.other[rng.randrange(len(art.labels)), s]
            elif kind < 0.85:  # a blank
                sprites[i], style[i] = 0, -100
            else:  # an even blend of two concepts
                a, b = rng.sample(range(len(THINGS)), 2)
                sprites[i] = ((art.world[a, s].int() + art.world[b, s].int()) // 2).to(torch.uint8)
        place = torch.randint(len(PLACES), (n,), generator=g)
        x = artwork.compose(sprites, colours[place], g, jitter=1.4)
        flip = torch.rand(n, generator=g) < 0.3
        x[flip] = x[flip].flip(-1)
        style[style >= len(STYLES)] = -100
        with fast():
            _, out = model(_augment(x, g, rng))
        total = cross_entropy(out["concept"].float(), concept, label_smoothing=0.05)
        return (
            total
            + 0.5 * cross_entropy(out["style"].float(), style)
            + 0.5 * cross_entropy(out["background"].float(), place)
        )

    optimise(ctx, "classifier", model, loss, steps=2200, lr=2e-3, warmup=100, weight_decay=0.02)
