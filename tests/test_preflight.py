"""What a run reads is looked for before anything is loaded, and what it costs is told from earlier runs."""

import json

import pytest
from omegaconf import OmegaConf

from erasebench import costs, preflight
from erasebench.command import needs
from erasebench.command.composing import as_job, composed, session
from erasebench.command.typed import Typed


@pytest.fixture(scope="module")
def config():
    overrides = ("model=sd14", "concept=nudity", "attack=nudity142", "method=none")
    with session(), as_job(composed(Typed(overrides), overrides)) as cfg:
        return OmegaConf.to_container(cfg, resolve=True)


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def changed(config, tmp_path, **nodes):
    return {**config, "results": str(tmp_path), "model": {**config["model"], "device": "cpu"}, **nodes}


def test_everything_a_run_reads_is_listed_once_with_where_to_get_it(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found = {need.key: need for need in preflight.needs(changed(config, tmp_path))}
    assert found["attack.path"].kind == "file" and not found["attack.path"].there
    for said in ("github.com/CharlesGong12/RECE", "403a67f", "0a40f6e63bca9765", "Apache-2.0"):
        assert said in found["attack.path"].get
    assert found["model.path"].kind == "download" and not found["model.path"].there
    assert "clip.pretrained" not in found or found["clip.pretrained"].kind == "download"
    revision = config["model"]["revision"]
    (tmp_path / "models--CompVis--stable-diffusion-v1-4" / "snapshots" / revision).mkdir(parents=True)
    found = {need.key: need for need in preflight.needs(changed(config, tmp_path))}
    assert found["model.path"].there


def test_each_missing_thing_has_a_line_and_downloads_only_where_there_is_no_network(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(preflight, "missing_packages", lambda node: [])
    bad = changed(
        config, tmp_path, method={"_target_": "x.Y", "path": str(tmp_path / "no.safetensors"), "revision": None}
    )
    assert [line.split(" - ")[0] for line in preflight.missing(bad)] == ["method.path", "attack.path"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "model.path" in [line.split(" - ")[0] for line in preflight.missing(bad)]
    with pytest.raises(preflight.Missing, match="; also: ") as error:
        preflight.check(bad)
    assert "\n" not in str(error.value) and len(error.value.lines) >= 3


def test_weights_fetched_before_are_there(config, tmp_path, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    clip = {"_target_": "erasebench.judges.clip.OpenClip", "model": "ViT-L-14", "pretrained": "openai"}
    features = {"_target_": "erasebench.judges.inception.Inception", "weights": None}
    nodes = {"judge": clip, "evaluator": {"fid": features}}
    found = [n for n in preflight.needs(changed(config, tmp_path, **nodes)) if n.kind == "download"]
    assert [n.there for n in found] == [False] * 3  # the model, too
    (tmp_path / "models--timm--vit_large_patch14_clip_224.openai" / "snapshots" / "0").mkdir(parents=True)
    weights = tmp_path / "hub" / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    weights.parent.mkdir(parents=True)
    weights.touch()
    found = [n for n in preflight.needs(changed(config, tmp_path, **nodes)) if n.kind == "download"]
    assert [n.there for n in found] == [False, True, True]


def test_a_full_disk_and_a_device_that_is_not_there_are_missing_things(config, tmp_path, monkeypatch):
    (tmp_path / "prompts.csv").write_text("prompt\n", encoding="utf-8")
    monkeypatch.setattr(preflight, "missing_packages", lambda node: [])
    good = changed(config, tmp_path, attack={"_target_": "x.Y", "path": str(tmp_path / "prompts.csv")})
    assert preflight.missing(good) == []
    monkeypatch.setattr(preflight, "_free", lambda folder: 2**20)
    good["model"]["device"] = "cuda:99"
    assert [line.split(" - ")[0] for line in preflight.missing(good)] == ["model.device", "results"]


def test_cells_that_share_images_count_them_once_and_earlier_runs_tell_the_time(config, tmp_path):
    n = {"target": 10, "paraphrase": 5, "neighbour": 0, "unrelated": 0, "coco": 0}
    plain = changed(config, tmp_path, prompts={"n": n}, attack={"_target_": "attacks.none.NoAttack"})
    two = [{**plain, "method": {"_target_": name}} for name in ("x.A", "x.B")]
    assert costs.expected(two, tmp_path).startswith("at most 45 images; no earlier run")  # 15 of the original, once
    folder = tmp_path / "runs/m/c/x/a/seed0"
    folder.mkdir(parents=True)
    steps = {"draw": {"images": 10, "seconds": 20.0, "cached": False}}
    steps |= {name: {"cached": False, "seconds": 5.0} for name in ("erase", "attack", "score")}
    (folder / "run.json").write_text(json.dumps({"config": two[0], "steps": steps}), encoding="utf-8")
    assert "45 images, about 1 min" in costs.expected(two, tmp_path)


def test_a_search_draws_every_target_and_a_reference_model_is_drawn_too(config, tmp_path):
    n = {"target": 10, "paraphrase": 0, "neighbour": 0, "unrelated": 0, "coco": 0}
    searched = changed(config, tmp_path, prompts={"n": n}, attack={"_target_": "x.Y", "rows": 3})  # rows: of its loss
    assert costs.expected([searched], tmp_path).startswith("at most 40 images")
    beside = {"o": {"_target_": "evaluators.oracle.OracleDistance", "oracle": {"_target_": "methods.oracle.Oracle"}}}
    assert costs.expected([{**searched, "evaluator": beside}], tmp_path).startswith("at most 60 images")


def test_the_command_lists_them_and_refuses_what_is_misspelt(capsys):
    assert needs.main(["experiment=rece_nudity_sd14"]) == 0
    assert "model.path: CompVis/stable-diffusion-v1-4" in capsys.readouterr().out
    assert needs.main(["experiment=rece_nudety_sd14"]) == 2
    assert "did you mean rece_nudity_sd14?" in capsys.readouterr().err


def test_weights_that_nothing_fetches_are_missing_with_the_command_that_makes_them(tmp_path):
    node = {"_target_": "erasebench.judges.q16.Q16Judge", "weights": None}
    (need,) = [n for n in preflight.needs({"judge": node}) if n.key == "judge.weights"]
    assert need.kind == "file" and not need.there and "erasebench.convert" in need.fetch
    (line,) = preflight.missing({"judge": node, "results": str(tmp_path)})
    assert "judge.weights=FILE; to make it: git clone" in line
    node = {"_target_": "erasebench.judges.networks.ResNet50V1", "weights": None}
    (need,) = [n for n in preflight.needs({"judge": {"network": node}}) if n.key.endswith("weights")]
    assert need.kind == "download" and "resnet50-0676ba61.pth" in need.fetch
