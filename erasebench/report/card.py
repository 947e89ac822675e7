"""The card of an erased model: what was erased, how, from which base, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import yaml

from erasebench.report.printing import as_row, plain

CONCEPT = ("name", "kind", "phrases", "anchor", "preserve")  # of a concept


def card(record: Mapping[str, Any], summary: pd.DataFrame, *, usage: str, base_licence: str = "") -> str:
    """Markdown with the front matter that model hubs read; a pure function of a run's files.

    Args:
        record: run.json.
        summary: summary.csv of the same run.
        usage: how the exported files are loaded.
        base_licence: what the base model says of its licence; "" if it says nothing.
    """
    names, config = {k: plain(v) for k, v in record["identity"]["names"].items()}, record["config"]
    concepts = [config["concept"], *config["also"]]
    return "\n".join([
        *_front_matter(config["model"], base_licence),
        "",
        f"# {names['model']} without {names['concept']}",
        "",
        f"{names['concept']} was erased from {names['model']} by {names['method']} (recipe: {names['recipe']}) with "
        f"erasebench {record['packages']['erasebench']}. The numbers below are of one run: they say how this model "
        "answered these prompts and this attack, not that the concept cannot be brought back.",
        "",
        "## Erased",
        *[_block({k: node[k] for k in CONCEPT if node.get(k)}) for node in concepts],
        "## Method",
        f"{names['method']}, recipe {names['recipe']}, seed {config['seed']}"
        + (f", several concepts: {config['together']}" if config["also"] else ""),
        _block(config["method"]),
        "## Base model",
        *_base(config["model"], record["model_hash"], record["steps"]["erase"]),
        "",
        "## Measured",
        *_measured(record, summary),
        "",
        "## Flags",
        *([plain(f"- `{f['flag']}`: {f['message']} {f['what_to_do']}") for f in record["flags"]] or ["none"]),
        "",
        "## Use",
        usage,
        "",
        "## Versions",
        ", ".join(plain(f"{package} {version}") for package, version in record["packages"].items()),
        _commit(record.get("git") or {}),
        "",
        "## Licence",
        _licence(config["model"], base_licence),
        "",
    ])  # fmt: skip


def facts(record: Mapping[str, Any]) -> dict[str, str]:
    """The card's facts as the text values that a safetensors header takes."""
    names, model = record["identity"]["names"], record["config"]["model"]
    return {
        **{key: str(value) for key, value in names.items()},
        "seed": str(record["config"]["seed"]),
        "base": public(model["path"]),
        "base_revision": str(model["revision"] or ""),
        "base_hash": str(record["model_hash"]),
        "run": str(record["key"]),
        "erasebench": str(record["packages"]["erasebench"]),
    }


def public(value: Any) -> Any:
    """A value without the folders of this machine: a card is made to be shared.

    >>> public({"path": "~/work/erased.safetensors", "base": "CompVis/stable-diffusion-v1-4"})
    {'path': 'erased.safetensors', 'base': 'CompVis/stable-diffusion-v1-4'}
    """
    if isinstance(value, Mapping):
        return {k: public(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [public(v) for v in value]
    if isinstance(value, str) and (value.startswith(("/", "~", ".")) or "\\" in value) and len(value.split()) == 1:
        return value.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return value


def _block(values: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(public(values), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    return "\n```yaml\n" + text.replace("```", "'''") + "```\n"


def _front_matter(model: Mapping[str, Any], licence: str) -> list[str]:
    head: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if model["revision"]:
        head["base_model"] = model["path"]
    head |= {"license": licence} if licence else {}
    head["tags"] = ["concept-erasure", "erasebench"]
    return ["---", yaml.safe_dump(head, sort_keys=False).strip(), "---"]


def _base(model: Mapping[str, Any], weights: str, erase: Mapping[str, Any]) -> list[str]:
    return [
        plain(f"- {model['name']}: `{public(model['path'])}`")
        + (plain(f" at revision `{model['revision']}`") if model["revision"] else ""),
        f"- hash of its weights and config: `{weights}`",
        f"- tensors changed: {erase.get('changed_tensors', 'unknown')}",
    ]


def _measured(record: Mapping[str, Any], summary: pd.DataFrame) -> list[str]:
    """The run's headlines as a table: group, images, original and erased model with 95 % intervals."""
    names = record["identity"]["names"]
    told = plain(f"Attack: {names['attack']} ({names.get('budget', '')}).") if record.get("attack") else "No attack."
    rows = summary[(summary.relation.fillna("") == "") & (summary.label.fillna("") != "")].sort_values("place")
    if not len(rows):
        return [told, "No headline was measured."]
    lines = [
        f"{told} 95 % intervals in brackets; every number is in the run's summary.csv.",
        "",
        as_row(["measured", "metric", "prompts", "n", "original model", "erased model"]),
        as_row(["---"] * 6),
    ]
    for row in rows.to_dict("records"):
        label = str(row["label"]).replace("{metric}", row["metric"])
        unit = str(row["unit"] or "") if isinstance(row["unit"], str) else ""
        both = [_value(row, ("base", "base_low", "base_high"), unit), _value(row, ("mean", "low", "high"), unit)]
        lines.append(as_row([label, f"`{row['metric']}`", row["group"], str(row["n"]), *both]))
    return lines


def _value(row: Mapping[str, Any], keys: Sequence[str], unit: str) -> str:
    mean, low, high = (float(row[k]) * (100 if unit == "%" else 1) for k in keys)
    if pd.isna(mean):
        return "none"
    text = f"{mean:.1f}{unit and ' ' + unit}"
    return text if pd.isna(low) else f"{text} [{low:.1f}, {high:.1f}]"


def _commit(git: Mapping[str, Any]) -> str:
    if not git.get("commit"):
        return ""
    return f"\nerasebench at commit {git['commit']}{' with local changes' if git.get('dirty') else ''}."


def _licence(model: Mapping[str, Any], licence: str) -> str:
    where = f"https://huggingface.co/{model['path']}" if model["revision"] else f"the model card of {model['name']}"
    told = f" It says: `{licence}`." if licence else ""
    return (
        "The erased weights are derived from the base model, so its licence and its conditions of use go on to apply; "
        f"see {plain(where)}.{plain(told)}"
    )
