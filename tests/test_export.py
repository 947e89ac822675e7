"""Erasures as files: one matrix where one matrix is the edit, and exports that plain diffusers draws the same with."""

from __future__ import annotations

import copy
import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from erasebench import conf_folder, diffusion, export
from erasebench.diffusion import erasures
from erasebench.one_run import run
from erasebench.report.card import card
from erasebench.store.files import locate
from erasebench.types import Concept, Prompt
from methods.checkpoint import Checkpoint
from methods.rece import RECE
from methods.uce import UCE

CAT = Concept(name="cat", phrases=("cat",), anchor="dog")
SMALL = ["model=emoji", "prompts.n={target:4,paraphrase:0,neighbour:2,unrelated:2,coco:0}", "model.steps=2",
         "model.batch_size=4",
         "evaluator=[classifier]"]  # fmt: skip
PROMPTS = [Prompt(id="0", text="a picture of a cat", seed=5), Prompt(id="1", text="a dog on a red background", seed=6)]


def small_run(results, *overrides):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", [f"results={results}", *SMALL, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return run(type(cfg)({k: v for k, v in cfg.items_ex(resolve=False) if k != "hydra"}))


def erasure(result, results):
    return results / "cache" / "erase" / result.record["steps"]["erase"]["key"]


@pytest.fixture(scope="module")
def embedded():
    return diffusion.load(locate("pkg:erasebench/emoji/weights"))


@pytest.fixture(scope="module")
def uce_run(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    return small_run(results, "method=uce"), results


# --- storage


@pytest.mark.parametrize("method", [UCE(), RECE(start=UCE(), epochs=1)], ids=["uce", "rece"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_shared_matrix_is_all_that_is_stored_and_gives_every_bit(make_pipe, tmp_path, method, dtype):
    pipe = make_pipe(dtype=dtype)
    erased = method.erase(pipe, CAT)
    erasures.save(tmp_path, erased, pipe, method={})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["erasure.json", "matrix.safetensors"]
    back = erasures.load(tmp_path, pipe)
    assert diffusion.fingerprint(back) == diffusion.fingerprint(erased) != diffusion.fingerprint(pipe)


def test_a_matrix_that_is_not_quite_the_edit_is_not_believed(tiny_pipe, tmp_path):
    erased = UCE().erase(tiny_pipe, CAT)
    erased.edit_matrix[0, 0] += 1e-3
    erasures.save(tmp_path, erased, tiny_pipe)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["changed.safetensors", "erasure.json"]
    assert diffusion.fingerprint(erasures.load(tmp_path, tiny_pipe)) == diffusion.fingerprint(erased)


@pytest.mark.parametrize("method", [UCE(technique="tensor"), RECE(start=UCE(technique="tensor"), epochs=1)])
def test_edits_that_differ_from_layer_to_layer_have_no_matrix(tiny_pipe, method):
    assert method.matrix(tiny_pipe, CAT) is None and method.erase(tiny_pipe, CAT).edit_matrix is None


def test_the_matrix_is_computed_once_and_a_fork_that_may_be_edited_again_has_none(tiny_pipe, tmp_path, monkeypatch):
    calls, solve = [], torch.linalg.solve
    monkeypatch.setattr(torch.linalg, "solve", lambda *a: calls.append(1) or solve(*a))
    erased = UCE().erase(tiny_pipe, CAT)
    erasures.save(tmp_path, erased, tiny_pipe)
    assert len(calls) == 1 and (tmp_path / "matrix.safetensors").exists()
    assert not hasattr(diffusion.fork(erased), "edit_matrix")


@pytest.mark.slow
def test_a_run_stores_the_matrix_and_rebuilds_the_same_weights(uce_run, embedded):
    result, results = uce_run
    folder = erasure(result, results)
    assert not (folder / "changed.safetensors").exists()
    whole = diffusion.changed_tensors(erasures.load(folder, embedded), embedded)
    assert result.record["steps"]["erase"]["changed_tensors"] == len(whole) > 0
    assert result.record["steps"]["erase"]["bytes"] < sum(t.numel() * t.element_size() for t in whole.values())


def test_a_matrix_of_another_width_is_refused(tiny_pipe, tmp_path):
    save_file({"matrix": torch.eye(31, dtype=torch.float64)}, tmp_path / "matrix.safetensors")
    (tmp_path / "erasure.json").write_text("{}")
    with pytest.raises(ValueError, match=r"matrix must be 32 wide as .*to_[kv]; got \[31, 31\]"):
        erasures.load(tmp_path, tiny_pipe)


# --- export


@pytest.mark.slow
def test_plain_diffusers_draws_the_same_image_from_an_export(uce_run, embedded, tmp_path):
    result, results = uce_run
    export.export(result.folder, "diffusers", tmp_path / "out")
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    plain.set_progress_bar_config(disable=True)
    erased = erasures.load(erasure(result, results), embedded)
    for prompt in PROMPTS:
        theirs = plain(
            prompt.text, num_inference_steps=5, guidance_scale=3.0,
            generator=torch.Generator().manual_seed(prompt.seed),
        ).images[0]  # fmt: skip
        ours, before = (
            next(diffusion.generate(pipe, [prompt], steps=5, guidance_scale=3.0))[1] for pipe in (erased, embedded)
        )
        difference = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs))
        assert difference.max() <= 1
        assert np.abs(np.asarray(before).astype(int) - np.asarray(theirs)).max() > 1
    assert diffusion.fingerprint(diffusion.load(tmp_path / "out")) == diffusion.fingerprint(erased)


@pytest.mark.slow
def test_exported_tensors_load_into_a_plain_unet_and_as_a_checkpoint(uce_run, embedded, tmp_path):
    result, results = uce_run
    readme, file = export.export(result.folder, "safetensors", tmp_path / "out")
    assert readme.name == "README.md"
    erased = erasures.load(erasure(result, results), embedded)
    plain = diffusion.load(locate("pkg:erasebench/emoji/weights"))
    unexpected = plain.unet.load_state_dict(load_file(file), strict=False).unexpected_keys
    assert file.name == "unet.safetensors" and not unexpected
    assert diffusion.fingerprint(plain) == diffusion.fingerprint(erased)
    again = Checkpoint(path=str(tmp_path / "out")).erase(embedded, CAT)
    assert diffusion.fingerprint(again) == diffusion.fingerprint(erased)


@pytest.mark.slow
def test_a_file_name_is_a_file_with_its_card_beside_it_and_inside(uce_run, embedded, tmp_path, capsys):
    result, results = uce_run
    file = tmp_path / "new" / "cat.safetensors"
    umask = os.umask(0o027)
    try:
        assert export.main([f"run={result.folder}", f"out={file}"]) == 0
    finally:
        os.umask(umask)
    beside = file.with_suffix(".md")
    assert sorted(file.parent.iterdir()) == [beside, file] and "2 files" in capsys.readouterr().out
    assert {path.stat().st_mode & 0o777 for path in (file, beside)} == {0o640}
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    assert header["card"] == beside.read_text() and header["concept"] == "cat" and header["seed"] == "0"
    again = Checkpoint(path=str(file)).erase(embedded, CAT)
    assert diffusion.fingerprint(again) == diffusion.fingerprint(erasures.load(erasure(result, results), embedded))
    for name in (file, tmp_path / "new" / "cat"):
        with pytest.raises(ValueError, match="out must"):
            export.export(result.folder, "safetensors", name if name == file else file.with_suffix(".md"))
    with pytest.raises(ValueError, match=r"format=diffusers is a folder; got out=.*x\.safetensors"):
        export.export(result.folder, "diffusers", tmp_path / "x.safetensors")


def test_several_parts_in_one_file_keep_their_names(make_pipe, tmp_path):
    base, other = make_pipe(), make_pipe(seed=1)
    both = {n: t for n, t in diffusion.changed_tensors(other, base).items() if n.startswith(("unet", "text_encoder"))}
    erased = diffusion.apply_tensors(base, both)
    out = tmp_path / "both.safetensors"
    files = export._write_file(erased, base, out, lambda usage: usage, {"concept": "cat"})
    assert {name.split(".")[0] for name in load_file(out)} == {"unet", "text_encoder"}
    assert "the pipeline's part before each name" in files[1].read_text()
    assert diffusion.fingerprint(Checkpoint(path=str(out)).erase(base, CAT)) == diffusion.fingerprint(erased)


@pytest.mark.slow
def test_every_folder_has_a_card_with_what_was_done_and_measured(uce_run, tmp_path):
    result, _ = uce_run
    export.export(result.folder, "diffusers", tmp_path / "whole")
    text = (tmp_path / "whole" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "diffusers" and "concept-erasure" in head["tags"] and "base_model" not in head
    record = result.record
    names = record["identity"]["names"]
    row = result.summary[(result.summary.group == "target") & (result.summary.role == "present")].iloc[0]
    for fact in (
        f"erased from emoji by {names['method']} (recipe: {names['recipe']})", "phrases: [cat, kitty, kitten, feline]",
        f"lamb: {record['config']['method']['lamb']}", record["model_hash"], "No attack.", "few_prompts",
        f"{100 * row['mean']:.1f} % [{100 * row.low:.1f}, {100 * row.high:.1f}]", f"`{row.metric}`",
        f"torch {record['packages']['torch']}", 'from_pretrained("whole")', "its licence and its conditions of use",
    ):  # fmt: skip
        assert fact in text, fact
    (tmp_path / "whole" / "README.md").chmod(0o644)
    assert {p.stat().st_mode & 0o044 for p in (tmp_path / "whole").rglob("*") if p.is_file()} == {0o044}


@pytest.mark.slow
def test_a_card_tells_the_base_and_no_folder_of_this_machine(uce_run, tmp_path):
    result, _ = uce_run
    record = copy.deepcopy(result.record)
    record["config"]["model"] |= {"path": "some/base", "revision": "c0ffee"}
    record["config"]["method"]["path"] = "/home/somebody/secret/weights.safetensors"
    text = card(record, result.summary, usage="", base_licence="creativeml-openrail-m")
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "some/base" and "license: creativeml" in text
    assert "`some/base` at revision `c0ffee`" in text and "https://huggingface.co/some/base" in text
    assert "somebody" not in text and "path: weights.safetensors" in text
    (tmp_path / "README.md").write_text("---\nlicense: 'mit'\n---\n# base\n")
    assert export.base_licence({"path": str(tmp_path)}) == "mit"
    assert export.base_licence({"path": str(tmp_path / "absent")}) == export.base_licence({"path": "a/b"}) == ""


@pytest.mark.slow
def test_a_model_that_was_not_changed_can_be_exported_whole_only(tmp_path, embedded):
    result = small_run(tmp_path / "results", "method=none")
    with pytest.raises(ValueError, match="it changed none; use format=diffusers"):
        export.export(result.folder, "safetensors", tmp_path / "tensors")
    assert not (tmp_path / "tensors").exists()
    export.export(result.folder, "diffusers", tmp_path / "whole")
    assert diffusion.fingerprint(diffusion.load(tmp_path / "whole")) == diffusion.fingerprint(embedded)


@pytest.mark.slow
def test_bad_exports_are_one_line(uce_run, tmp_path, capsys):
    result, _ = uce_run
    folder = f"run={result.folder}"

    def line(*arguments):
        assert export.main(list(arguments)) == 2
        (said,) = capsys.readouterr().err.strip().splitlines()
        return said

    assert "usage" in line(folder)
    assert "usage" in line(folder, "format=diffusers", "to=x")
    assert "usage" in line(folder, "diffusers", f"out={tmp_path / 'o'}")
    assert "format must be one of" in line(folder, "format=ckpt", f"out={tmp_path / 'o'}")
    assert "found none in" in line(f"run={tmp_path}", "format=diffusers", f"out={tmp_path / 'o'}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert "out must be empty" in line(folder, "format=diffusers", f"out={tmp_path / 'full'}")
    copy = tmp_path / "moved"
    shutil.copytree(result.folder, copy)
    assert "must lie in a results folder" in line(f"run={copy}", "format=diffusers", f"out={tmp_path / 'o'}")
    for change, message in (
        ({"model_hash": "0"}, "has changed; run again"),
        ({"steps": {"erase": {"key": "nothing"}}}, "must be there and whole"),
        ({"steps": {}}, "does not name its erasure"),
    ):
        lost = tmp_path / "results" / "runs" / message[:5]
        shutil.copytree(result.folder, lost)
        (lost / "run.json").write_text(json.dumps(result.record | change, default=str))
        assert message in line(f"run={lost}", "format=diffusers", f"out={tmp_path / 'o'}")
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_erasures_that_live_in_the_sampler_are_not_exported(tmp_path):
    result = small_run(tmp_path / "results", "method=negative_prompt")
    with pytest.raises(ValueError, match="negative_prompt erases while drawing"):
        export.export(result.folder, "diffusers", tmp_path / "out")
