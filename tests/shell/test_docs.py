"""Generated files are what the code says now; the configs of the repository pass their own checks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.config import RunConfig, load_config
from sim.config_docs import config_page, json_schema
from sim.resolve import resolve

ROOT = Path(__file__).resolve().parents[2]
#: Those of one run; sweeps have their own test.
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.yaml") if "\naxes:" not in p.read_text())


def test_config_page_is_current() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == config_page(), "run `make docs`"


def test_schema_is_current() -> None:
    assert json.loads((ROOT / "configs" / "schema.json").read_text()) == json_schema()


def test_every_key_has_a_description() -> None:
    schema = json_schema()
    bare = [
        f"{name}.{key}"
        for name, model in [("", schema), *schema["$defs"].items()]
        for key, prop in model["properties"].items()
        if not prop.get("description")
    ]
    assert bare == []


def test_page_names_every_key() -> None:
    page = config_page()
    for key in RunConfig.model_fields:
        assert f"| `{key}` |" in page
    for key in RunConfig.model_fields["engine"].annotation.model_fields:  # type: ignore[union-attr]
        assert f"| `engine.{key}` |" in page


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configs_resolve(path: Path) -> None:
    resolved = resolve(load_config(path))
    assert resolved.config["name"]
    assert resolved.engine.num_gpu_blocks > 1
