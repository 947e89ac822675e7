"""Pictures to learn from: drawn once for all methods, encoded as the sampler left them, noised by the formula."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from erasebench import cell as cell  # registers ${labels:}
from erasebench import conf_folder
from erasebench.diffusion import generate, picture_latents
from erasebench.store import workspace
from erasebench.types import Concept, Prompt, joint
from methods import training_images
from methods.training_images import FromImages, token_columns

CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog")
RECIPES = [
    "advanchor", "advunlearn", "age_nudity", "age_object", "all_but_one", "ca", "ca_noise", "crce",
    "degeneration_tuning", "doco_object", "doco_style", "duge", "fmn", "kpop", "modular_lora", "modular_lora_after",
    "modular_lora_apart", "salun_nudity", "salun_object",
]  # fmt: skip


def test_pictures_are_drawn_once_for_all_methods_and_are_the_same_without_a_store(tiny_pipe, tmp_path, monkeypatch):
    drawn = []

    def counted(pipe, prompts, **options):
        drawn.append(len({p.id for p in prompts}))
        return generate(pipe, prompts, **options)

    monkeypatch.setattr(training_images, "generate", counted)
    few = FromImages(images=3, steps=2, templates=("a {}", "the {}"), guidance_scale=2.0)
    with workspace.use(tmp_path / "work", tmp_path):
        first = few.pictures(tiny_pipe, [("cat", "dog")])
    assert [(p.text, p.asked) for p in first] == [("a cat", "a dog"), ("the cat", "the dog"), ("a cat", "a dog")]
    assert drawn == [3] and not torch.equal(first[0].latent, first[2].latent)
    more = FromImages(images=5, steps=2, templates=("a {}", "the {}"), guidance_scale=2.0, seed=8, lr=0.1)
    with workspace.use(tmp_path / "work", tmp_path):
        second = more.pictures(tiny_pipe, [("cat", "cat")])
    assert drawn == [3, 2] and all(torch.equal(a.latent, b.latent) for a, b in zip(first, second, strict=False))
    alone = few.pictures(tiny_pipe, [("cat", "dog")])
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(first, alone, strict=True))


def test_an_encoded_picture_is_the_scaled_mean_of_its_posterior(tiny_pipe):
    images = [image for _, image, _ in generate(tiny_pipe, [Prompt(id="a", text="a cat")], steps=2)]
    found = picture_latents(tiny_pipe, images)
    pixels = torch.tensor([[images[0].getpixel((x, y)) for x in range(64)] for y in range(64)])[None] / 127.5 - 1
    with torch.no_grad():
        moments = tiny_pipe.vae.quant_conv(tiny_pipe.vae.encoder(pixels.permute(0, 3, 1, 2)))
    expected = moments[:, :4] * tiny_pipe.vae.config.scaling_factor
    torch.testing.assert_close(found, expected)


def test_noise_is_added_by_the_formula_and_a_row_does_not_depend_on_the_batch(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    small, large = (FromImages(images=2, steps=2, batch_size=n, seed=3) for n in (1, 3))
    pictures = small.pictures(pipe, [("cat", "cat")])
    few, one = (m.noised(m.denoiser(pipe), pictures, 5) for m in (large, small))
    assert torch.equal(few.z[:1], one.z) and few.timesteps[:1] == one.timesteps
    for picture, z, noise, t in zip(*few, strict=True):
        a = pipe.scheduler.alphas_cumprod.double()[t]
        torch.testing.assert_close(z, a.sqrt() * picture.latent.double() + (1 - a).sqrt() * noise)
    assert not torch.equal(large.noised(large.denoiser(pipe), pictures, 5, "others").noise, few.noise)


def test_columns_are_where_the_words_letters_stand(tiny_pipe):
    assert token_columns(tiny_pipe, "a cat", "cat") == [2, 3, 4]  # one token a letter; 0 is the start, 1 is "a"
    with pytest.raises(ValueError, match="must hold 'cat' as a word of its own"):
        token_columns(tiny_pipe, "cats", "cat")


def test_anchors_are_those_of_every_part(tiny_pipe):
    dog = Concept(name="dog", phrases=("dog", "puppy"), anchor="bear")
    assert FromImages(phrases="all").anchored(joint([CAT, dog])) == [
        ("cat", "dog"), ("kitty", "dog"), ("dog", "bear"), ("puppy", "bear"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="concept 'sun' must have an anchor"):
        FromImages().anchored(Concept(name="sun", phrases=("sun",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, "images must be an integer >= 1"),
        ({"templates": ()}, "templates must hold at least 1 text"),
        ({"templates": ("a {x}",)}, r"templates must each hold {} once.*; got 'a {x}'"),
        ({"templates": ("{} and {}",)}, "templates must each hold {} once"),
    ],
)
def test_bad_settings_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        FromImages(**changes)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_every_field_and_the_embedded_models_is_another(name):
    def made(*more):
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return compose("config", [f"method={name}", *(more or ("model=emoji",))])

    paper = made("recipe=paper", "seed=3")
    method = instantiate(paper.method, _convert_="all")
    assert set(paper.method) - {"_target_"} == {field.name for field in fields(method)} and method.seed == 3
    small = made()
    assert small.recipe == f"{name}_emoji" and small.method.layers == paper.method.layers
    assert small.method.lr > paper.method.lr
    assert made("model=emoji2", "model.steps=20").method == small.method
