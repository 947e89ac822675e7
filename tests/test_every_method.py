"""Every published recipe: the parameters it changes and no other, the same seed twice, and what it refuses unread."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from erasebench import conf_folder, diffusion
from erasebench.one_run import run
from erasebench.store.files import tensor_header
from erasebench.types import Concept

CAT = Concept(name="cat", phrases=("cat", "kitty"), anchor="dog", neighbours={"visual": ("lion",)})
FOR_ONE_MODEL = ("checkpoint", "oracle", "uce_flux", "esd_flow")  # one model, transformers: tests of their own
METHODS = sorted(p.stem for p in (conf_folder() / "method").glob("*.yaml") if p.stem not in FOR_ONE_MODEL)
CROSS, SELF = r"\.attn2\.", r"\.attn1\."
KEYS_AND_VALUES = r"\.attn2\.to_[kv]\.weight$"
BUT_CROSS_AND_OUTER = r"^unet\.(?!conv_norm_out|conv_out|time_embedding)(?!.*\.attn2\.)"
CHANGES = {  # recipe -> pattern of the tensors of the pipeline it may change, from the papers; "" is none
    "none": "", "negative_prompt": "", "sld_": "", "uce": KEYS_AND_VALUES, "rece": KEYS_AND_VALUES, "esd_x": CROSS,
    "esd_x_strict": KEYS_AND_VALUES, "esd_u": BUT_CROSS_AND_OUTER, "esd_full": r"^unet\.", "esd_selfattn": SELF,
    "esd_v2": CROSS, "eap_object": CROSS, "eap_nudity": BUT_CROSS_AND_OUTER, "sdd": CROSS,
    "ca": KEYS_AND_VALUES, "age_object": CROSS, "age_nudity": BUT_CROSS_AND_OUTER, "advanchor": CROSS,
    "salun_": r"^unet\.", "fmn": r"^unet\.", "crce": KEYS_AND_VALUES,
    "doco_": KEYS_AND_VALUES, "advunlearn": r"^text_encoder\.",
    "all_but_one": CROSS,
    "kpop": CROSS,
    "degeneration_tuning": r"^unet\.",
    "duge": CROSS,
    "modular_lora": r"\.attn2\.to_.*weight$",
    "speed": r"\.attn2\.to_v\.weight$",
    "leace": r"\.attn2\.(to_[kv]\.weight|to_out\.0\.bias)$",
    "trce_": KEYS_AND_VALUES,
    "mace_": KEYS_AND_VALUES,
    "sepme": KEYS_AND_VALUES,
    "safree": "",
    "conceptprune": r"\.ff\.net\.2\.weight$",
    "receler": "",
    "spm": "",
    "saeuron_": "",
}  # fmt: skip
PARTLY = ("salun_", "fmn", "conceptprune")  # which of them is decided by gradients: tests of their own
QUICK = {
    "iterations": 1,
    "steps": 5,
    "batch_size": 1,
    "lr": 1e-3,
    "pool": ("sun", "kitty", "tree"),
    "centres": 2,
    "images": 2,
    "attack_steps": 1,
    "inner_steps": 1,
    "tuning_iterations": 1,
    "pads": 0,
}  # fmt: skip


def made(name):
    """The recipe as published, with as little training as shows which parameters move."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        method = instantiate(compose(f"method/{name}", ["+seed=0"]).method, _convert_="all")
    known = {f.name for f in fields(method)}
    trained = known & {"iterations", "epochs"}
    quick = QUICK | ({"iterations": 2, "warm_up": 1} if "warm_up" in known else {})
    quick |= {"epochs": 1, "scored": 2, "others": ("sun", "tree")} if "epochs" in known else {}
    return replace(method, **{k: v for k, v in quick.items() if k in known}) if trained else method


@pytest.fixture(scope="module")
def model(make_pipe):
    """A pipeline, the names of all its tensors, and its fingerprint before anything was erased."""
    pipe = make_pipe()
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "vae": pipe.vae}
    names = [f"{part}.{name}" for part, module in parts.items() for name, _ in module.named_parameters()]
    return pipe, names, diffusion.fingerprint(pipe)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_which_parameters_change_and_that_no_other_does(model, name):
    pipe, names, before = model
    method, pattern = made(name), CHANGES[max((key for key in CHANGES if name.startswith(key)), key=len)]
    if name == "saeuron_style":  # Stable Diffusion's third block is none of this model's
        method = replace(method, block="up_blocks.1.attentions.1")
    torch.manual_seed(1)
    erased = method.erase(pipe, CAT)
    changed, allowed = set(diffusion.changed_tensors(erased, pipe)), {n for n in names if re.search(pattern or "^$", n)}
    assert changed <= allowed and (changed == allowed or (changed and name.startswith(PARTLY)))
    assert diffusion.fingerprint(pipe) == before
    torch.manual_seed(2)  # global randomness decides nothing
    assert not diffusion.changed_tensors(method.erase(pipe, CAT), erased)


def composed(tmp_path, *overrides):
    few = ["model=emoji", "attack=none", "evaluator=[classifier]", "prompts.n={target:1}", f"results={tmp_path}"]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", ["method=uce", *few, *overrides])


BAD = {
    "unknown layer set": (["method=esd_x", "method.layers=attn3"], "layers must be one of xattn, .* got 'attn3'"),
    "... of EAP": (["method=eap_object", "method.layers=cross"], "layers must be one of"),
    "... of SDD": (["method=sdd", "method.layers=[]"], "layers must be one of"),
    "no phrase": (["concept.phrases=[]"], r"at least 1 text; got \[\]; write concept.phrases=\[cat\]"),
    "an empty phrase": (["method=esd_u", "concept.phrases=[cat,'']"], "phrases must be a list of non-empty texts"),
    "its own anchor": (["method=sdd", "concept.anchor=Kitty"], "anchor 'Kitty' is the concept itself"),
    "UCE's anchor": (["method.anchor=cat"], "anchor must differ from the concept 'cat'"),
    "RECE's start": (["method=rece", "method.start.anchor=cat"], "anchor must differ from the concept"),
}  # fmt: skip


@pytest.fixture
def nothing_is_read(monkeypatch):
    from erasebench import steps
    from erasebench.diffusion import loading

    monkeypatch.setattr(loading, "_read", lambda *a, **k: pytest.fail("weights were read"))
    monkeypatch.setattr(steps, "load", lambda *a, **k: pytest.fail("the model was loaded"))


@pytest.mark.parametrize("why", BAD)
def test_bad_input_is_one_line_before_any_weight_is_loaded(tmp_path, nothing_is_read, why):
    overrides, message = BAD[why]
    with pytest.raises(ValueError, match=message) as error:
        run(composed(tmp_path, *overrides))
    assert "\n" not in str(error.value)


def test_a_misfit_and_a_lora_for_another_base_name_the_first_tensor_and_both_shapes(tmp_path, nothing_is_read):
    from safetensors.torch import save_file

    from erasebench.store.files import locate

    held = tensor_header(locate("pkg:erasebench/emoji/weights") / "unet" / "diffusion_pytorch_model.safetensors")[0]
    first, second = sorted(n for n in held if n.endswith("attn2.to_k.weight"))[:2]
    rows, width = held[first]
    save_file({n: torch.zeros(rows, width + 1) for n in (second, first)}, tmp_path / "wide.safetensors")
    layer = first.removesuffix(".weight")
    halves = {"lora_A": torch.zeros(4, 768), "lora_B": torch.zeros(rows, 4)}
    save_file({f"unet.{layer}.{half}.weight": t for half, t in halves.items()}, tmp_path / "lora.safetensors")
    for file, parts in (
        ("wide", (first, str([rows, width]), str([rows, width + 1]))),
        ("lora", (layer, str([rows, width]), f"[{rows}, 4] x [4, 768]")),
    ):
        with pytest.raises(ValueError) as error:
            run(composed(tmp_path, "method=checkpoint", f"method.path={tmp_path / file}.safetensors"))
        assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)
