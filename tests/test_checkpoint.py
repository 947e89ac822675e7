"""Checkpoints of one's own: every form of names, LoRA against a forward pass with a side branch, refusals."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from safetensors.torch import save_file
from torch import nn

from erasebench import conf_folder, diffusion
from erasebench.diffusion import headers, lora
from erasebench.one_run import run
from erasebench.store.files import tensor_header
from erasebench.types import Concept
from methods.checkpoint import Checkpoint

CAT = Concept(name="cat", phrases=("cat",), anchor="dog")
KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "encoder.layers.1.self_attn.q_proj"


SMALL = ["model=emoji", "prompts.n={target:4,paraphrase:0,neighbour:2,unrelated:2,coco:0}", "model.steps=2",
         "model.batch_size=4",
         "evaluator=[classifier]"]  # fmt: skip


def composed(results, *overrides):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", [f"results={results}", *SMALL, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return type(cfg)({k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"})


def ones(pipe, part: str, module: str) -> torch.Tensor:
    return torch.ones_like(getattr(pipe, part).get_submodule(module).weight)


def erase(path, pipe, **fields):
    return Checkpoint(path=str(path), **fields).erase(pipe, CAT)


def write(path, tensors, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path, metadata=metadata or None)
    return path


# --- whole pipelines and tensors


def test_a_diffusers_folder(tiny_pipe, make_pipe, tmp_path):
    other = make_pipe(seed=1)
    other.save_pretrained(tmp_path / "erased")
    erased = erase(tmp_path / "erased", tiny_pipe)
    assert diffusion.fingerprint(erased) == diffusion.fingerprint(other) != diffusion.fingerprint(tiny_pipe)


def test_a_folder_shares_what_it_does_not_change(tiny_pipe, tmp_path):
    name = f"unet.{KEY}.weight"
    diffusion.apply_tensors(tiny_pipe, {name: ones(tiny_pipe, "unet", KEY)}).save_pretrained(tmp_path / "erased")
    erased = erase(tmp_path / "erased", tiny_pipe)
    assert list(diffusion.changed_tensors(erased, tiny_pipe)) == [name]
    assert erased.unet.conv_in.weight.data_ptr() == tiny_pipe.unet.conv_in.weight.data_ptr()


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_changed_tensors_of_the_unet_under_both_names(tiny_pipe, tmp_path, prefix):
    path = write(tmp_path / "x.safetensors", {f"{prefix}{KEY}.weight": ones(tiny_pipe, "unet", KEY)})
    changed = diffusion.changed_tensors(erase(path, tiny_pipe), tiny_pipe)
    assert list(changed) == [f"unet.{KEY}.weight"] and (changed[f"unet.{KEY}.weight"] == 1).all()


@pytest.mark.parametrize("prefix", ["", "text_model.", "text_encoder.", "text_encoder.text_model."])
@pytest.mark.parametrize("kind", ["tiny_pipe", "tiny_xl_pipe"])
def test_text_encoders_with_and_without_text_model(kind, prefix, tmp_path, request):
    pipe = request.getfixturevalue(kind)
    own = next(n for n, _ in pipe.text_encoder.named_modules() if n.endswith(TEXT))
    path = write(tmp_path / "x.safetensors", {f"{prefix}{TEXT}.weight": ones(pipe, "text_encoder", own)})
    assert list(diffusion.changed_tensors(erase(path, pipe), pipe)) == [f"text_encoder.{own}.weight"]


def test_a_whole_unet_and_a_folder_of_files(tiny_pipe, make_pipe, tmp_path):
    other = make_pipe(seed=1)
    other.unet.save_pretrained(tmp_path / "unet")
    other.text_encoder.save_pretrained(tmp_path / "text")
    (tmp_path / "both").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "both" / "a.safetensors")
    (tmp_path / "text" / "model.safetensors").rename(tmp_path / "both" / "b.safetensors")
    erased = erase(tmp_path / "both", tiny_pipe)
    assert {n.split(".")[0] for n in diffusion.changed_tensors(erased, tiny_pipe)} == {"unet", "text_encoder"}
    assert {n.split(".")[0] for n in diffusion.changed_tensors(erased, other)} == {"vae"}


def test_half_precision_weights_take_the_models_dtype(tiny_pipe, tmp_path):
    path = write(tmp_path / "x.safetensors", {f"{KEY}.weight": ones(tiny_pipe, "unet", KEY).half()})
    assert erase(path, tiny_pipe).unet.get_submodule(KEY).weight.dtype == torch.float32


# --- LoRA


LAYERS = [  # linear, feed-forward, convolutions of 1x1 and 3x3, text encoder
    ("unet", KEY),
    ("unet", "mid_block.attentions.0.transformer_blocks.0.ff.net.2"),
    ("unet", "up_blocks.0.attentions.0.proj_in"),
    ("unet", "down_blocks.0.resnets.0.conv1"),
    ("text_encoder", TEXT),
]


def random_lora(pipe, rank=3):
    """part, module -> (A, B) in the shapes of a LoRA of that layer."""
    g = torch.Generator().manual_seed(0)
    pairs = {}
    for part, module in LAYERS:
        out, inputs, *kernel = getattr(pipe, part).get_submodule(module).weight.shape
        down = torch.randn(rank, inputs, *kernel, generator=g)
        up = torch.randn(out, rank, *[1] * len(kernel), generator=g)
        pairs[part, module] = (0.2 * down, 0.2 * up)
    return pairs


def peft(pairs, alpha):
    tensors = {}
    for (part, module), (down, up) in pairs.items():
        stem = f"{part}.text_model.{module}" if part == "text_encoder" else f"{part}.{module}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    settings = {f"{part}.lora_alpha": alpha for part in ("unet", "text_encoder")}
    return tensors, {"lora_adapter_metadata": json.dumps(settings)}


def diffusers_old(pairs, alpha):
    tensors = {}
    for (part, module), (down, up) in pairs.items():
        stem = f"{part}.{module}"
        tensors |= {f"{stem}.lora.down.weight": down, f"{stem}.lora.up.weight": up}
        tensors[f"{stem}.alpha"] = torch.tensor(float(alpha))
    return tensors, {}


def kohya(pairs, alpha):
    tensors = {}
    for (part, module), (down, up) in pairs.items():
        flat = module.replace(".", "_")
        stem = f"lora_te_text_model_{flat}" if part == "text_encoder" else f"lora_unet_{flat}"
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        tensors[f"{stem}.alpha"] = torch.tensor(float(alpha))
    return tensors, {"ss_network_dim": "3"}


def side_branch(pipe, pairs, factor):
    """The same LoRA as peft runs it: a second path beside every layer, weights as they were."""
    pipe = diffusion.fork(pipe)
    for (part, module), (down, up) in pairs.items():
        layer = getattr(pipe, part).get_submodule(module)
        if isinstance(layer, nn.Linear):
            path = lambda x, a=down, b=up: x @ a.T @ b.T  # noqa: E731
        else:
            path = lambda x, a=down, b=up, c=layer: nn.functional.conv2d(  # noqa: E731
                nn.functional.conv2d(x, a, stride=c.stride, padding=c.padding), b
            )
        layer.register_forward_hook(lambda _, args, out, path=path: out + factor * path(args[0]))
    return pipe


@pytest.mark.parametrize("form", [peft, diffusers_old, kohya])
def test_a_merged_lora_computes_what_a_side_branch_computes(tiny_pipe, tmp_path, form):
    pairs = random_lora(tiny_pipe)
    tensors, metadata = form(pairs, alpha=2)
    erased = erase(write(tmp_path / "lora.safetensors", tensors, **metadata), tiny_pipe, scale=1.5)
    expected = side_branch(tiny_pipe, pairs, 1.5 * 2 / 3)
    assert len(diffusion.changed_tensors(erased, tiny_pipe)) == len(LAYERS)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    outputs = []
    for pipe in (erased, expected, tiny_pipe):
        text = diffusion.encode(pipe, ["a cat"])
        with torch.no_grad():
            outputs.append(pipe.unet(x, 300, encoder_hidden_states=text).sample)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    assert (outputs[0] - outputs[2]).abs().max() > 1e-2


def test_without_alpha_the_factor_is_one_and_old_processor_names_are_known(tiny_pipe, tmp_path):
    block = KEY.removesuffix(".to_k")
    tensors = {}
    for name, module in (("to_k", f"{block}.to_k"), ("to_out", f"{block}.to_out.0")):
        out, inputs = tiny_pipe.unet.get_submodule(module).weight.shape
        tensors[f"unet.{block}.processor.{name}_lora.down.weight"] = torch.ones(2, inputs)
        tensors[f"unet.{block}.processor.{name}_lora.up.weight"] = torch.ones(out, 2)
    changed = diffusion.changed_tensors(erase(write(tmp_path / "l.safetensors", tensors), tiny_pipe), tiny_pipe)
    assert set(changed) == {f"unet.{block}.to_k.weight", f"unet.{block}.to_out.0.weight"}
    torch.testing.assert_close(changed[f"unet.{KEY}.weight"], tiny_pipe.unet.get_submodule(KEY).weight + 2)


def test_patterns_and_rank_stabilised_scaling_of_the_metadata():
    settings = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"a.to_k": 4}, "unet.use_rslora": True}
    settings = lora.part_settings({"lora_adapter_metadata": json.dumps(settings)}, None)
    shapes = {f"unet.{m}.lora_{s}.weight": (2, 2) for m in ("a.to_k", "b.to_k") for s in "AB"}
    model = {"unet.a.to_k.weight": (2, 2), "unet.b.to_k.weight": (2, 2)}
    found = lora.adapters(shapes, settings, model)
    assert [found[k].alpha for k in sorted(found)] == [4, 8]
    tensors = {name: torch.eye(2) for name in shapes}
    out = lora.merged(torch.zeros(2, 2), found["unet.b.to_k.weight"], tensors, 1.0)
    torch.testing.assert_close(out, torch.eye(2) * 8 / math.sqrt(2))


def test_a_lora_for_sdxls_second_encoder(tiny_xl_pipe, tmp_path):
    own = next(n for n, _ in tiny_xl_pipe.text_encoder_2.named_modules() if n.endswith(TEXT))
    stem = "lora_te2_text_model_" + TEXT.replace(".", "_")
    tensors = {f"{stem}.lora_down.weight": torch.ones(1, 32), f"{stem}.lora_up.weight": torch.ones(32, 1)}
    erased = erase(write(tmp_path / "l.safetensors", tensors), tiny_xl_pipe)
    assert list(diffusion.changed_tensors(erased, tiny_xl_pipe)) == [f"text_encoder_2.{own}.weight"]


# --- peft's adapter folders


def adapter(folder, pairs, **settings):
    """A folder as ``get_peft_model(unet).save_pretrained`` writes it, of the UNet's layers."""
    folder.mkdir(parents=True)
    tensors = {}
    for (part, module), (down, up) in pairs.items():
        if part == "unet":
            stem = f"base_model.model.{module}"
            tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    write(folder / "adapter_model.safetensors", tensors, format="pt")
    known = {"peft_type": "LORA", "r": 3, "lora_alpha": 12, "bias": "none", "use_rslora": False, "rank_pattern": {},
             "alpha_pattern": {}, "init_lora_weights": True, "fan_in_fan_out": False}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(known | settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({}, [4, 4, 4, 4]),
        ({"lora_alpha": 1}, [1 / 3] * 4),
        ({"use_rslora": True}, [12 / math.sqrt(3)] * 4),
        ({"alpha_pattern": {"attn2.to_k": 6, "conv1": 1.5}}, [2, 4, 4, 0.5]),
        ({"alpha_pattern": {"to_k": 6, "attn2.to_k": 9}}, [2, 4, 4, 4]),  # the first that matches decides
        ({"r": 8, "rank_pattern": {"to_k": 3, "net.2": 3, "proj_in": 3, "conv1": 3}}, [4, 4, 4, 4]),
        ({"fan_in_fan_out": True}, [4, 4, 4, 4]),  # peft sets it back for the layers of a UNet
    ],
)
def test_an_adapter_folder_is_merged_as_its_settings_say(tiny_pipe, tmp_path, settings, factors):
    pairs = random_lora(tiny_pipe)
    changed = diffusion.changed_tensors(erase(adapter(tmp_path / "a", pairs, **settings), tiny_pipe), tiny_pipe)
    inside = [(module, pair) for (part, module), pair in pairs.items() if part == "unet"]
    assert set(changed) == {f"unet.{module}.weight" for module, _ in inside}
    for (module, (down, up)), factor in zip(inside, factors, strict=True):
        weight = tiny_pipe.unet.get_submodule(module).weight
        expected = weight + factor * torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).reshape(weight.shape)
        torch.testing.assert_close(changed[f"unet.{module}.weight"], expected, rtol=1e-5, atol=1e-5)


def test_adapters_of_two_parts_in_subfolders(tiny_pipe, tmp_path):
    pairs = random_lora(tiny_pipe)
    adapter(tmp_path / "out" / "unet", pairs)
    down, up = pairs["text_encoder", TEXT]
    encoder = adapter(tmp_path / "out" / "text_encoder", {}, r=3)
    stem = f"base_model.model.text_model.{TEXT}"
    write(encoder / "adapter_model.safetensors", {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up})
    changed = diffusion.changed_tensors(erase(tmp_path / "out", tiny_pipe), tiny_pipe)
    assert len(changed) == len(LAYERS)
    own = next(n for n, _ in tiny_pipe.text_encoder.named_modules() if n.endswith(TEXT))
    weight = tiny_pipe.text_encoder.get_submodule(own).weight
    torch.testing.assert_close(changed[f"text_encoder.{own}.weight"], weight + 4 * up @ down)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "adapter_config.json: the adapter must be a plain LoRA; got use_dora"),
        ({"bias": "lora_only"}, "got bias lora_only"),
        ({"init_lora_weights": "pissa_niter_4"}, "got init_lora_weights pissa_niter_4"),
        ({"peft_type": "LOKR"}, "got peft_type LOKR"),
        ({"modules_to_save": ["conv_out"]}, "got modules_to_save"),
        ({"r": 16}, f"must have rank 16 in unet.{KEY}, as its settings say; got 3"),
    ],
)
def test_adapters_that_are_no_plain_lora_are_refused(shapes, tiny_pipe, tmp_path, settings, message):
    assert message in refused(adapter(tmp_path / "a", random_lora(tiny_pipe), **settings), shapes)


def test_an_adapter_without_its_settings_is_refused(shapes, tiny_pipe, tmp_path):
    folder = adapter(tmp_path / "a", random_lora(tiny_pipe))
    assert f"write method.path={folder}" in refused(folder / "adapter_model.safetensors", shapes)
    (folder / "adapter_config.json").unlink()
    assert "adapter_config.json must lie beside" in refused(folder, shapes)


# --- folders


def test_a_folder_with_several_candidates_is_refused_with_their_names(shapes, tiny_pipe, tmp_path):
    for name in ("sun-a", "sun-b", "sun-c"):
        write(tmp_path / "esd" / f"{name}.safetensors", {f"{KEY}.weight": ones(tiny_pipe, "unet", KEY)})
    message = refused(tmp_path / "esd", shapes)
    assert "got 3 for the unet: sun-a.safetensors, sun-b.safetensors, sun-c.safetensors; choose one" in message
    write(tmp_path / "both" / "unet" / "x.safetensors", {f"{KEY}.weight": ones(tiny_pipe, "unet", KEY)})
    write(tmp_path / "both" / "unet_ema" / "x.safetensors", {f"{KEY}.weight": ones(tiny_pipe, "unet", KEY)})
    message = refused(tmp_path / "both", shapes)
    assert "unet/x.safetensors, unet_ema/x.safetensors" in message and f"method.path={tmp_path}/both/unet" in message


def test_shards_are_one_model(shapes, tiny_pipe, make_pipe, tmp_path):
    other = make_pipe(seed=1)
    other.unet.save_pretrained(tmp_path / "unet", max_shard_size="100KB")
    files = sorted((tmp_path / "unet").glob("*.safetensors"))
    assert len(files) > 2
    erased = erase(tmp_path / "unet", tiny_pipe)
    assert {n.split(".")[0] for n in diffusion.changed_tensors(erased, tiny_pipe)} == {"unet"}
    assert not [n for n in diffusion.changed_tensors(erased, other) if n.startswith("unet.")]
    files[1].unlink()
    assert f"must hold all {len(files)} shards" in refused(tmp_path / "unet", shapes)


def test_a_folder_of_pickles_names_the_file_and_the_converter(shapes, tmp_path):
    (tmp_path / "ck" / "text_encoder").mkdir(parents=True)
    (tmp_path / "ck" / "text_encoder" / "pytorch_model.bin").write_bytes(b"x")
    target = tmp_path / "ck" / "text_encoder" / "pytorch_model"
    assert f"python -m erasebench.convert {target}.bin {target}.safetensors" in refused(tmp_path / "ck", shapes)


def test_a_folder_of_folders_names_one(shapes, tiny_pipe, tmp_path):
    write(tmp_path / "o" / "checkpoint-500" / "x.safetensors", {f"{KEY}.weight": ones(tiny_pipe, "unet", KEY)})
    assert f"method.path={tmp_path}/o/checkpoint-500" in refused(tmp_path / "o", shapes)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "unet._orig_mod.", "unet.module."])
def test_wrappers_of_ddp_and_compile_are_understood(tiny_pipe, tmp_path, prefix):
    path = write(tmp_path / "x.safetensors", {f"{prefix}{KEY}.weight": ones(tiny_pipe, "unet", KEY)})
    assert list(diffusion.changed_tensors(erase(path, tiny_pipe), tiny_pipe)) == [f"unet.{KEY}.weight"]


def test_a_prefix_of_somebodys_trainer_is_named(shapes, tiny_pipe, tmp_path):
    path = write(tmp_path / "x.safetensors", {f"student.model.{KEY}.weight": ones(tiny_pipe, "unet", KEY)})
    assert "without the prefix 'student.model.' it would" in refused(path, shapes)


# --- refusals


def test_the_original_is_untouched(tiny_pipe, tmp_path):
    before = diffusion.fingerprint(tiny_pipe)
    erase(write(tmp_path / "x.safetensors", {f"{KEY}.weight": ones(tiny_pipe, "unet", KEY)}), tiny_pipe)
    assert diffusion.fingerprint(tiny_pipe) == before


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin"])
def test_pickles_are_refused_with_the_name_of_the_converter(suffix):
    with pytest.raises(ValueError, match=rf"python -m erasebench\.convert a/b{suffix} a/b\.safetensors"):
        Checkpoint(path=f"a/b{suffix}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "nobody/nothing"}, "pinned revision"),
        ({"path": "nobody/nothing", "revision": "main"}, "pinned revision"),
        ({"path": "/no/such/folder"}, "path must be a folder, a safetensors file or a hub id; got /no/such/folder"),
        ({"scale": float("inf")}, "scale must be a finite number"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_built(fields, message):
    with pytest.raises((ValueError, OSError), match=message):
        Checkpoint(**fields)


def refused(path, shapes):
    with pytest.raises((ValueError, OSError)) as error:
        Checkpoint(path=None if path is None else str(path)).check(CAT, shapes)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def shapes(tiny_pipe, tmp_path):
    """What a run hands to ``check``: shapes from the headers of a model folder."""
    tiny_pipe.save_pretrained(tmp_path / "model")
    found = headers.folder_shapes(tmp_path / "model")
    assert found.items() <= headers.pipe_shapes(tiny_pipe)[0].items() and len(found) > 200
    return found


def test_misfits_are_named_from_the_headers_alone(shapes, tmp_path, make_pipe, monkeypatch):
    monkeypatch.setattr("erasebench.diffusion.weight_files.load_file", lambda *_: pytest.fail("weights were read"))
    wrong = write(tmp_path / "wrong.safetensors", {f"{KEY}.weight": torch.zeros(16, 31)})
    assert f"tensor {KEY}.weight must have shape [16, 32] as in this model; got [16, 31]" in refused(wrong, shapes)
    strange = write(tmp_path / "strange.safetensors", {"nothing.weight": torch.zeros(1)})
    assert "tensor nothing.weight must belong to this model" in refused(strange, shapes)
    compvis = write(tmp_path / "ldm.safetensors", {"model.diffusion_model.out.0.weight": torch.zeros(1)})
    assert "layout of CompVis" in refused(compvis, shapes) and "from_single_file" in refused(compvis, shapes)
    make_pipe(width=64).save_pretrained(tmp_path / "wider")
    assert "as in this model; got" in refused(tmp_path / "wider", shapes)
    (tmp_path / "broken.safetensors").write_bytes(b"<html>")
    assert "must be whole safetensors" in refused(tmp_path / "broken.safetensors", shapes)
    assert "must be a file; found none" in refused(tmp_path / "none.safetensors", shapes)
    (tmp_path / "empty").mkdir()
    assert "must hold safetensors or a diffusers pipeline" in refused(tmp_path / "empty", shapes)
    assert "set method.path" in refused(None, shapes)


def test_a_lora_for_another_base_is_refused_from_its_header(shapes, tmp_path):
    wide = {f"unet.{KEY}.lora_A.weight": torch.zeros(4, 2048), f"unet.{KEY}.lora_B.weight": torch.zeros(16, 4)}
    message = refused(write(tmp_path / "wide.safetensors", wide), shapes)
    assert f"whose layer unet.{KEY} is [16, 32]; got [16, 4] x [4, 2048]" in message
    deep = {f"lora_unet_input_blocks_9.lora_{s}.weight": torch.zeros(4, 4) for s in ("down", "up")}
    assert "which has no layer unet.input_blocks_9" in refused(write(tmp_path / "deep.safetensors", deep), shapes)
    half = {f"unet.{KEY}.lora_A.weight": torch.zeros(4, 32)}
    assert "both halves" in refused(write(tmp_path / "half.safetensors", half), shapes)
    dora = wide | {f"unet.{KEY}.lora_magnitude_vector": torch.zeros(4)}
    assert "plain LoRA" in refused(write(tmp_path / "dora.safetensors", dora), shapes)
    mixed = {f"unet.{KEY}.lora_A.weight": torch.zeros(4, 32), f"unet.{KEY}.weight": torch.zeros(16, 32)}
    assert "pairs of low-rank tensors only" in refused(write(tmp_path / "mixed.safetensors", mixed), shapes)


def test_what_headers_could_not_tell_is_refused_while_erasing(tiny_pipe, make_pipe, tmp_path):
    make_pipe(width=64).save_pretrained(tmp_path / "wider")
    with pytest.raises(ValueError, match="as in this model; got"):
        erase(tmp_path / "wider", tiny_pipe)
    other = diffusion.fork(tiny_pipe)
    other.scheduler = type(tiny_pipe.scheduler).from_config(tiny_pipe.scheduler.config, prediction_type="v_prediction")
    other.save_pretrained(tmp_path / "v")
    with pytest.raises(ValueError, match="must predict epsilon as the model does; got v_prediction"):
        erase(tmp_path / "v", tiny_pipe)


@pytest.mark.slow
def test_a_run_takes_the_checkpoints_name_and_sees_when_the_file_changes(tmp_path):
    from erasebench.store.files import locate

    held = tensor_header(locate("pkg:erasebench/emoji/weights") / "unet" / "diffusion_pytorch_model.safetensors")[0]
    name = next(name for name in held if name.endswith("attn2.to_k.weight"))
    path = write(tmp_path / "mine.safetensors", {name: torch.zeros(held[name])})
    options = ("method=checkpoint", f"method.path={path}", "method.name=mine")
    first = run(composed(tmp_path / "results", *options))
    assert first.folder.parts[-3] == "mine" and set(first.scores.method) == {"mine"}
    assert first.record["steps"]["erase"]["changed_tensors"] == 1
    assert run(composed(tmp_path / "results", *options)).cached
    write(path, {name: torch.ones(held[name])})
    second = run(composed(tmp_path / "results", *options))
    assert not second.cached and second.record["steps"]["erase"]["key"] != first.record["steps"]["erase"]["key"]


@pytest.mark.slow
def test_a_run_of_a_checkpoint_that_changes_nothing_is_flagged_and_the_null_method_is_not(tmp_path):
    from erasebench.store.files import locate

    base = locate("pkg:erasebench/emoji/weights") / "unet" / "diffusion_pytorch_model.safetensors"
    found = {}
    for name, options in (("base", (f"method.path={base}", "method.name=base")), ("none", ())):
        method = "none" if name == "none" else "checkpoint"
        record = run(composed(tmp_path / "results", f"method={method}", *options)).record
        assert record["steps"]["erase"]["changed_tensors"] == 0
        found[name] = [flag["flag"] for flag in record["flags"]]
    assert "changes_nothing" in found["base"] and "changes_nothing" not in found["none"]


@pytest.mark.slow
def test_a_run_refuses_a_misfit_before_it_loads_a_weight(tmp_path, monkeypatch):
    from erasebench.diffusion import loading

    monkeypatch.setattr(loading, "_read", lambda *a, **k: pytest.fail("weights were read"))
    path = write(tmp_path / "mine.safetensors", {f"unet.{KEY}.weight": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match=r"must have shape \[\d+, 320\] as in this model; got \[1, 2\]"):
        run(composed(tmp_path / "results", "method=checkpoint", f"method.path={path}"))
    with pytest.raises(ValueError, match="anchor must differ from the concept 'cat'"):
        run(composed(tmp_path / "results", "method=uce", "method.anchor=Cat"))


def test_a_checkpoint_without_a_tensor_is_refused(tmp_path):
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="must hold tensors; it holds none"):
        Checkpoint(path=str(tmp_path / "empty.safetensors")).check(CAT, {"unet.w": (1,)})
