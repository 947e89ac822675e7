"""The doctor: what is here, what lacks with the command that fetches it, stored values, what it will take."""

from __future__ import annotations

import json

import pytest

import erasebench
from erasebench import conf_folder, costs, doctor, fetching
from erasebench.command.composing import compose, session
from tests.small import SMALL, small_run


@pytest.fixture
def quick(monkeypatch):
    """Without drawing the golden image."""
    monkeypatch.setattr(doctor, "distance", lambda entry: 0.0)


def test_stored_values_come_out_here_and_a_change_is_seen():
    troubles: list[str] = []
    assert "as stored" in doctor.golden(troubles)[0] and not troubles
    (entry,) = json.loads((conf_folder() / "golden.json").read_text(encoding="utf-8"))
    other = doctor.distance({**entry, "seed": entry["seed"] + 1})
    assert other > doctor.LEVELS  # another image is far


def test_what_does_not_come_out_is_said_and_exits_with_1(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor, "distance", lambda entry: 9.0)
    assert doctor.main([f"results={tmp_path}"]) == 1
    out = capsys.readouterr()
    assert "NOT as stored" in out.out and "must come out as stored" in out.err


def test_a_run_that_can_start(quick, capsys, tmp_path):
    assert doctor.main([f"results={tmp_path / 'not' / 'there'}"]) == 0
    out = capsys.readouterr().out
    for part in (
        "machine",
        "cores",
        "GB free",
        "there: model.path",
        "at most",
        "time: unknown",
        "disk: unknown",
        "ready",
    ):
        assert part in out, part
    assert not (tmp_path / "not").exists()  # it writes nothing


def test_what_lacks_comes_with_the_command_that_fetches_it(quick, capsys, tmp_path):
    assert doctor.main(["experiment=rece_nudity", f"data={tmp_path}", f"results={tmp_path}"]) == 1
    out = capsys.readouterr()
    show = f"git -C RECE.git show 403a67f:dataset/nudity.csv > {tmp_path}/rece/nudity.csv"
    assert show in out.out and "hf download CompVis/stable-diffusion-v1-4 --revision 133a221b8aa7" in out.out
    assert "open_clip" in out.out and "load_state_dict_from_url" in out.out
    assert "prompts.path" in out.err and "ready" not in out.out


def test_an_unpinned_model_a_missing_key_and_a_slip_of_the_pen(quick, capsys, tmp_path):
    where = [f"results={tmp_path}"]
    assert doctor.main(["model=sd21", "concept=church", *where]) == 1
    assert "a hub id must be pinned; stabilityai/stable-diffusion-2-1 is not" in capsys.readouterr().err
    assert doctor.main(["attack=replay", *where]) == 1
    assert "to be given: attack." in capsys.readouterr().out
    assert doctor.main(["model=sdd"]) == 2 and "sd14" in capsys.readouterr().err
    assert doctor.main(["model.scheduler=klms"]) == 2
    assert doctor.main(["--help"]) == 0 and "Exit code 0" in capsys.readouterr().out


@pytest.mark.slow
def test_time_and_disk_come_from_earlier_runs(quick, capsys, tmp_path):
    result = small_run(tmp_path, "method=none")
    assert doctor.main([*SMALL, f"results={tmp_path}", "method=uce"]) == 0
    out = capsys.readouterr().out
    assert "time: about" in out and "disk: about" in out and "at most 14 images, 56 model evaluations" in out
    with session():
        from omegaconf import OmegaConf

        cfg = compose([*SMALL, f"results={tmp_path}", "model.scheduler=euler"])
        config = OmegaConf.to_container(cfg, resolve=False)
    assert (
        costs.cost([{**result.record["config"], "model": config["model"]}], tmp_path).seconds is None
    )  # another sampler


def test_every_published_file_of_a_public_repository_has_a_command():
    from omegaconf import OmegaConf

    found = 0
    for path in sorted((conf_folder() / "attack").glob("*.yaml")):
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if str(node.get("source", "")).startswith("github.com/") and node.get("file") and node.get("revision"):
            text = fetching.from_github({**node}, "data/x.csv")
            assert f"show {node['revision']}:" in text, path
            found += 1
    assert found > 10 and erasebench.__version__
