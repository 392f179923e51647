"""Releases and switches: the table itself, and how a config names them."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from sim import profiles
from sim.config import load_config
from sim.config_engine import load_engine_json
from sim.engine_settings import EngineSettings
from sim.errors import InputError
from sim.profiles import LATER_KEYS, Rules, changes_between, releases, rules_of
from sim.resolve import resolve
from sim.switches import SWITCHES

CONFIG = """\
engine:
  num_gpu_blocks: 100
  max_model_len: 100
  vllm: "0.25"
step_time: {kind: constant, step: 0.01}
workload: {kind: batch, num_requests: 3}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a.yaml into an empty working folder: text -> its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("a.yaml").write_text(text)
        return "a.yaml"

    return write


def resolved(path: str, *sets: str) -> EngineSettings:
    return resolve(load_config(path, sets)).engine


def refusals(path: str, *sets: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        resolve(load_config(path, sets))
    return [str(p) for p in caught.value.problems]


def test_table_and_record_agree() -> None:
    """One attribute of Rules for each switch, with the same values; the default is the default release."""
    hints = get_type_hints(Rules, vars(profiles))
    assert [f.name for f in fields(Rules)] == [s.name for s in SWITCHES]
    for switch in SWITCHES:
        assert get_args(hints[switch.name]) == tuple(switch.values)
        assert switch.onsets[0].release == profiles.FIRST_RELEASE
        onsets = [profiles.release_key(o.release) for o in switch.onsets]
        assert onsets == sorted(set(onsets))
        assert {o.value for o in switch.onsets} == set(switch.values)
    assert rules_of(profiles.DEFAULT_RELEASE) == Rules()
    assert set(profiles.VERSIONS) <= set(releases())
    assert set(LATER_KEYS) <= {f.name for f in fields(EngineSettings)}


def test_releases_in_between_take_the_last_value_before_them() -> None:
    assert [rules_of(r).free_order for r in ("0.22", "0.23", "0.26", "0.27", "0.28")] == [
        "append",
        "append_window_split",
        "split",
        "split_if_caching",
        "split",
    ]
    assert rules_of("0.18").full_sequence_reserve == "off"
    assert rules_of("0.19").full_sequence_reserve == "on"
    assert rules_of("0.25", (("free_order", "append"),)).free_order == "append"
    changed = [(s.name, o.release) for s, o in changes_between("0.31", "0.33")]
    assert changed == [
        ("partial_tail_keys", "0.32"),
        ("draft_lookup", "0.32"),
        ("state_tables", "0.32"),
        ("state_chunks", "0.32"),
        ("state_tails", "0.32"),
        ("state_exports", "0.32"),
        ("state_checkpoints", "0.32"),
        ("priority_mode", "0.33"),
        ("draft_hits", "0.33"),
        ("accepted_cached", "0.33"),
        ("state_renewal", "0.33"),
        ("encoder_full", "0.33"),
    ]


@pytest.mark.parametrize("bad", [("0.12", ()), ("0.25", (("x", "on"),)), ("0.25", (("free_order", "x"),))])
def test_unknown_names_raise(bad: tuple[str, tuple[tuple[str, str], ...]]) -> None:
    with pytest.raises(ValueError, match="unknown"):
        rules_of(*bad)


def test_defaults_follow_the_release(config) -> None:
    path = config(CONFIG)
    assert resolved(path).prefix_cache_retention_interval is None
    old = resolve(load_config(path, ["engine.vllm=0.13"]))
    assert (old.engine.async_scheduling, old.config["engine"]["async_scheduling"]) == (False, False)
    assert old.config["engine"]["gpu_memory_utilization"] == 0.9
    assert old.config["engine"]["scheduler_reserve_full_isl"] is False
    assert resolved(path, "engine.vllm=0.13", "engine.async_scheduling=true").async_scheduling
    assert resolved(path, "engine.vllm=0.28").prefix_cache_retention_interval is None
    hybrid = (
        "engine.vllm=0.29",
        "engine.kv_cache_groups=[{type: mamba}, {type: full}]",
        "engine.num_speculative_tokens=1",
        "engine.speculative_method=mtp",
        "engine.draft_acceptance=0.5",
    )
    dense = resolve(load_config(path, hybrid))
    assert dense.engine.prefix_cache_retention_interval is None
    assert dense.config["engine"]["prefix_cache_retention_interval"] is None
    assert resolved(path, *hybrid, "engine.vllm=0.30").prefix_cache_retention_interval == 0
    assert resolved(path, *hybrid, "engine.speculative_method=ngram").prefix_cache_retention_interval == 0
    assert resolved(path, "engine.vllm=0.29").prefix_cache_retention_interval == 0
    new = resolved(path, "engine.vllm=0.30")
    assert (new.vllm, new.async_scheduling, new.prefix_cache_retention_interval) == ("0.30", True, 0)


def test_switches_compose_a_release(config) -> None:
    path = config(CONFIG.replace('"0.25"', '"0.25"\n  switches: {free_order: append, group_ratio: 1.25}'))
    loaded = resolve(load_config(path))
    assert loaded.engine.switches == (("free_order", "append"), ("group_ratio", "1.25"))
    assert loaded.engine.rules.free_order == "append"
    assert loaded.engine.rules.full_sequence_reserve == "on"
    assert loaded.config["engine"]["switches"] == {"free_order": "append", "group_ratio": "1.25"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"0.25"',
            '"0.25"\n  switches: {free_oder: append}',
            "a.yaml:5:14: unknown key 'engine.switches.fre",
        ),
        (
            '"0.25"',
            '"0.25"\n  switches: {free_order: apend}',
            "a.yaml:5:26: 'engine.switches.free_order' mus",
        ),
        (
            '"0.25"',
            '"0.25.1"',
            "a.yaml:4:9: 'engine.vllm' must name a minor release: '0.25' instead of '0.25",
        ),
        ('"0.25"', '"0.99"', "a.yaml:4:9: 'engine.vllm' must be a release from '0.13' to '0.33', got '0.99'"),
        ("100\n", "100\n  watermark: 0.1\n", ""),
        ('"0.25"', '"0.14"\n  watermark: 0.1', "a.yaml:5:14: vLLM 0.14 has no watermark: it came with 0.24"),
    ],
)
def test_what_is_wrong_is_told_at_its_place(config, old: str, new: str, message: str) -> None:
    path = config(CONFIG.replace(old, new, 1))
    if message:
        assert refusals(path)[0].startswith(message)
    else:
        assert resolved(path).watermark == 0.1


def test_the_null_block_counts_as_room_before_029(config) -> None:
    path = config(CONFIG.replace("num_gpu_blocks: 100", "num_gpu_blocks: 7"))
    assert resolved(path).num_gpu_blocks == 7
    assert "raise num_gpu_blocks to 8" in refusals(path, "engine.vllm=0.29")[0]


def test_config_json_and_later_keys(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"vllm": "0.14", "switches": {"stats_at": "admission"}}')
    settings = load_engine_json(file)
    assert settings.switches == (("stats_at", "admission"),)
    assert not settings.reserves_full_sequence
    file.write_text('{"vllm": "0.14",\n "max_num_active_seqs": 4}')
    with pytest.raises(InputError, match=f"{os.sep}config.json:2:25: vLLM 0.14 has no max_num_active_seqs"):
        load_engine_json(file)
    plain = EngineSettings(vllm="0.14", max_num_active_seqs=4, watermark=0.5).without_later_keys()
    assert (plain.max_num_active_seqs, plain.watermark, plain.scheduler_reserve_full_isl) == (
        None,
        0.0,
        False,
    )
