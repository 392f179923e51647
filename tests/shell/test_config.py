"""Configs: every problem at once, each with its place and a way out."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from sim.config import load_config
from sim.config_engine import EngineConfig, EngineJson, EngineKeys, load_engine_json
from sim.config_types import format_cost
from sim.engine_checks import require_simulated
from sim.engine_settings import EngineSettings, KVCacheGroup
from sim.errors import InputError, did_you_mean
from sim.resolve import resolve

GOOD = """\
model: llama-3.1-8b
gpu: h100
engine:
  max_model_len: 32768
workload:
  kind: chat
  arrivals: {kind: poisson, rate: 2}
  duration: 60s
"""


@pytest.fixture
def write(tmp_path: Path):
    def make(text: str, name: str = "a.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return make


def problems(path: Path, *overrides: str) -> list[str]:
    """What loading and resolving says, without the folder's name, one text for each problem."""
    with pytest.raises(InputError) as e:
        resolve(load_config(path, overrides))
    return [str(p).replace(f"{path.parent}/", "") for p in e.value.problems]


def test_all_problems_at_once_with_places(write) -> None:
    path = write("""\
modle: llama-3.1-8b
model: llama-3.1-9b
gpu: h10
engine:
  block_size: "16"
  blok_size: 3
  num_gpu_blocks: maybe
  watermark: 2
  max_model_len: 12.5
  kv_cache_memory_bytes: 20 Gigs
  kv_cache_groups:
    - type: ful
step_time:
  kind: rooflin
workload:
  kind: chat
  arrivals: {kind: poison, rate: 2}
  output_len: {kind: lognormal, mena: 100, cv: 1}
  duration: 60 parsecs
output:
  plots: maybe
""")
    assert [text.split("\n")[0] for text in problems(path)] == [
        "a.yaml:1:1: unknown key 'modle'",
        "a.yaml:2:8: unknown model 'llama-3.1-9b'",
        "a.yaml:3:6: unknown gpu 'h10'",
        "a.yaml:5:15: 'engine.block_size' must be a whole number or auto, got '16'",
        "a.yaml:6:3: unknown key 'engine.blok_size'",
        "a.yaml:7:19: 'engine.num_gpu_blocks' must be a whole number or auto, got 'maybe'",
        "a.yaml:8:14: 'engine.watermark' must be less than 1, got 2",
        "a.yaml:9:18: 'engine.max_model_len' must be a whole number or one of auto, fit, got 12.5",
        "a.yaml:10:26: 'engine.kv_cache_memory_bytes' must be bytes, or a number with a unit"
        " (GiB, MiB, GB, MB), got '20 Gigs'",
        "a.yaml:12:13: 'engine.kv_cache_groups[0].type' must be one of full, sliding_window, chunked_local,"
        " mamba, cross_attention, got 'ful'",
        "a.yaml:14:9: 'step_time.kind' must be one of constant, affine, roofline, table, got 'rooflin'",
        "a.yaml:17:20: 'workload.arrivals.kind' must be one of poisson, gamma, constant, bursts, diurnal,"
        " closed_loop, got 'poison'",
        "a.yaml:18:33: unknown key 'workload.output_len.mena'",
        "a.yaml:19:13: 'workload.duration': unknown unit 'parsecs' in '60 parsecs';"
        " use one of ns, us, ms, s, min, h, d",
        "a.yaml:21:10: 'output.plots' must be true or false, got 'maybe'",
    ]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("modle: x", "did you mean 'model'?"),
        ("model: llama-3.1-9b", "did you mean 'llama-3.1-8b'?"),
        ("gpu: H10", "did you mean 'h100'?"),
        ("engine: {model: x}", "'model' is a key of its own at the top, not of 'engine'"),
        ("block_size: 16", "did you mean 'engine.block_size'?"),
        ("engine: {sample_period: 1s}", "did you mean 'output.sample_period'?"),
        ("engine: {polcy: fcfs}", "did you mean 'policy'?"),
        ("engine: {policy: fcsf}", "did you mean 'fcfs'?"),
    ],
)
def test_did_you_mean(write, line: str, hint: str) -> None:
    path = write(f"{line}\nworkload: {{kind: batch, num_requests: 3}}\n")
    assert f"hint: {hint}" in problems(path)[0]


def test_rows_are_some_time_apart(write) -> None:
    text = (
        "engine: {num_gpu_blocks: 300}\nstep_time: {kind: constant, step: 1ms}\noutput: {sample_period: 0s}\n"
    )
    (problem,) = problems(write(f"{text}workload: {{kind: batch, num_requests: 3}}\n"))
    assert problem.startswith("a.yaml:3:25: 'output.sample_period' must be greater than 0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "a.yaml:3:1: the key 'a' is given twice"),
        ("engine: {block_size: 1,\n  block_size: 2}\n", "a.yaml:2:3: the key 'block_size' is given twice"),
        ("a: [1, 2\nb: 3\n", "a.yaml:2:2: not valid YAML"),
        ("", "a.yaml:1:1: the file is empty"),
        ("- a\n", "a.yaml:1:1: expected `key: value` lines"),
        ("engine: 5\nworkload: 7\n", "a.yaml:1:9: 'engine' must be a section of keys, got 5"),
        ("seed: 1\n", "a.yaml:1:1: the key 'workload' is missing"),
        ("workload: {arrivals: 3}\n", "a.yaml:1:1: the key 'workload.kind' is missing"),
        ("workload:\n  kind: batch\n", "a.yaml:1:1: the key 'workload.num_requests' is missing"),
        (
            "workload: {kind: chat, arrivals: {kind: poisson, rate: 1}}\n",
            "a.yaml:1:11: 'workload': give duration, num_sessions or both",
        ),
    ],
)
def test_broken_files(write, text: str, message: str) -> None:
    assert problems(write(text))[0].startswith(message)


def test_missing_and_unreadable_files(write, tmp_path: Path) -> None:
    write(GOOD, "chat.yaml")
    text = problems(tmp_path / "chta.yaml")[0]
    assert text == "chta.yaml: no such config file\n  hint: did you mean 'chat.yaml'?"
    assert "this is a folder" in problems(tmp_path)[0]
    named = problems(Path("Llama-3.1-8B-Instruct"))[0]
    assert named.startswith("Llama-3.1-8B-Instruct: this is a model's name, not a config file")
    assert named.endswith("--model Llama-3.1-8B-Instruct")
    (tmp_path / "b.yaml").write_bytes(b"a: 1\n\xff\xfe\n")
    assert problems(tmp_path / "b.yaml")[0].startswith("b.yaml:2: not UTF-8 text")


def test_clock_times_stay_text(write) -> None:
    path = write(GOOD.replace("60s", "12:30"))
    assert "got '12:30'" in problems(path)[0]


def test_impossible_combinations(write) -> None:
    path = write("""\
engine:
  max_num_seqs: 100
  max_num_batched_tokens: 50
  num_gpu_blocks: 10
  max_num_active_seqs: 200
  max_num_scheduled_tokens: 60
  long_prefill_token_threshold: 5000
  enable_chunked_prefill: false
step_time: {kind: constant, step: 10ms}
workload: {kind: batch, num_requests: 3}
""")
    found = [text.split("\n")[0] for text in problems(path)]
    assert found == [
        "a.yaml:3:27: max_num_batched_tokens (50) is smaller than max_num_seqs (100)",
        "a.yaml:3:27: max_num_batched_tokens (50) is smaller than max_model_len (4096)"
        " and enable_chunked_prefill is false",
        "a.yaml:4:19: a pool of 10 blocks is smaller than one request of max_model_len"
        " (4096 tokens need 257 blocks of 16, the null block included)",
        "a.yaml:5:24: max_num_active_seqs (200) is greater than max_num_seqs (100)",
        "a.yaml:6:29: max_num_scheduled_tokens (60) is greater than max_num_batched_tokens (50)",
        "a.yaml:7:33: long_prefill_token_threshold (5000) is greater than max_model_len (4096)",
    ]


def test_pool_check_is_that_of_vllm(write) -> None:
    """cdiv(max_model_len, block_size) + 1 blocks are enough; one less is refused (VLLM 0.29 and later)."""
    text = (
        "engine: {num_gpu_blocks: N, max_model_len: 100, block_size: 16}\n"
        "step_time: {kind: constant, step: 0.01}\nworkload: {kind: batch, num_requests: 3}\n"
    )
    assert resolve(load_config(write(text.replace("N", "8")))).engine.num_gpu_blocks == 8
    assert "lower max_model_len to 96" in problems(write(text.replace("N", "7")))[0]


MODELS = sorted(p.stem for p in (Path(__file__).resolve().parents[2] / "configs" / "models").glob("*.json"))


@pytest.mark.parametrize("caching", ["true", "false"])
def test_every_shipped_model_can_run(write, caching: str) -> None:
    for model in MODELS:
        length = 448 if model == "whisper-large-v3" else 2048
        text = (
            f"model: {model}\ngpu: h200\nengine:\n  num_gpu_blocks: 2000000\n  max_model_len: {length}\n"
            f"  enable_prefix_caching: {caching}\n"
            "step_time: {kind: constant, step: 0.01}\nworkload: {kind: batch, num_requests: 3}\n"
        )
        if model in ("whisper-large-v3", "llama-3.2-11b-vision") and caching == "true":
            assert "encoder-decoder models have no prefix cache" in problems(write(text))[0]
            continue
        engine = resolve(load_config(write(text))).engine
        exports = [g.prefill_checkpoint_alignment for g in engine.kv_cache_groups]
        assert exports == (
            [1] if model == "mamba-codestral-7b" and caching == "true" else [None] * len(exports)
        )


def test_what_a_release_does_not_have_is_refused(write) -> None:
    group = "{type: mamba, prefill_checkpoint_alignment: 1}"
    path = write(
        GOOD.replace("engine:\n", f"engine:\n  vllm: '0.25'\n  kv_cache_groups: [{{type: full}}, {group}]\n")
    )
    found = problems(path)
    assert found[0].startswith("a.yaml:5:79: vLLM 0.25 has no prefill_checkpoint_alignment of a group")
    exported = KVCacheGroup("mamba", prefill_checkpoint_alignment=1)
    with pytest.raises(InputError, match=r"vLLM 0\.25 has no prefill_checkpoint_alignment"):
        require_simulated(EngineSettings(vllm="0.25", kv_cache_groups=(KVCacheGroup(), exported)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.block_size", "--set: expected KEY=VALUE, got 'engine.block_size'"),
        ("=3", "--set: expected KEY=VALUE"),
        ("engine..x=3", "--set: expected KEY=VALUE"),
        ("engine.block_size=[1", "--set engine.block_size: not valid YAML"),
        ("engine.blok_size=32", "--set engine.blok_size: unknown key 'engine.blok_size'"),
        ("engine.block_size=abc", "--set engine.block_size: 'engine.block_size' must be a whole number"),
        ("model.x=1", "--set model.x: 'model' is a value, not a section"),
        ("workload.arrivals.rate=-1", "--set workload.arrivals.rate: 'workload.arrivals.rate' must be more"),
        ("gpu=h300", "--set gpu: unknown gpu 'h300'"),
    ],
)
def test_overrides_that_fail(write, override: str, message: str) -> None:
    assert problems(write(GOOD), override)[0].startswith(message)


def test_overrides_are_typed_as_yaml(write) -> None:
    path = write(GOOD)
    sets = ["engine.block_size=32", "engine.enable_prefix_caching=false", "workload.duration=90s", "name=x"]
    sets += ["run.until=1min", "engine.kv_cache_groups=[{type: full}]", "engine.watermark=1e-2"]
    config = load_config(path, sets, seed=9).config
    assert config.engine.block_size == 32
    assert config.engine.enable_prefix_caching is False
    assert config.engine.watermark == 0.01
    assert (config.name, config.seed, config.run.until) == ("x", 9, 60 * 10**9)
    assert load_config(path, ["seed=4"]).config.seed == 4


def test_defaults_are_those_of_the_formats() -> None:
    """EngineSettings, config.json and YAML have the same keys; the first two have the same defaults.

    Which drafts are right is data where a config.json is used, and drawn in a run.
    """
    model = EngineKeys().model_dump() | {"draft_acceptance": None}
    for field in fields(EngineSettings):
        if field.name not in ("kv_cache_groups", "switches"):
            assert model[field.name] == field.default, field.name
    assert EngineKeys().settings() == EngineSettings()
    assert set(model) == {f.name for f in fields(EngineSettings)}
    assert set(model) <= set(EngineConfig.model_fields)
    assert set(EngineJson.model_fields) == {*EngineKeys.model_fields, "name"}


def test_engine_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"name": "tiny", "num_gpu_blocks": 3, "max_num_seqs": 2, "async_scheduling": true}')
    settings = load_engine_json(path)
    assert (settings.num_gpu_blocks, settings.async_scheduling, settings.block_size) == (3, True, 16)
    assert (settings.active_seqs, settings.scheduled_tokens, settings.usable_blocks) == (2, 2048, 2)
    path.write_text('{\n\t"blok_size": 8,\n\t"max_num_seqs": 4096\n}')
    with pytest.raises(InputError) as e:
        load_engine_json(path)
    assert str(e.value) == f"{path}:2:2: unknown key 'blok_size'\n  hint: did you mean 'block_size'?"
    path.write_text('{"max_num_seqs": 4096}')
    with pytest.raises(InputError, match=r"max_num_batched_tokens \(2048\) is smaller than max_num_seqs"):
        load_engine_json(path)
    path.write_text('{"max_num_seqs": 4096,}')
    with pytest.raises(InputError, match="not valid JSON"):
        load_engine_json(path)


def test_conformance_configs_load(conformance_dir: Path) -> None:
    settings = [load_engine_json(path) for path in sorted(conformance_dir.glob("*/config.json"))]
    assert len(settings) == 17
    assert {g.type for s in settings for g in s.kv_cache_groups} == {
        "full",
        "sliding_window",
        "chunked_local",
        "mamba",
    }


def test_resolved_numbers(write) -> None:
    r = resolve(load_config(write(GOOD)))
    e = r.engine
    assert (e.max_num_seqs, e.max_num_batched_tokens, e.async_scheduling) == (1024, 8192, True)
    assert r.pool.how == "estimated"
    assert 26_000 < e.num_gpu_blocks < 30_000
    assert r.config["engine"]["num_gpu_blocks"] == e.num_gpu_blocks
    assert r.config["gpu"] == "h100-80gb"
    assert r.name == "a"
    assert r.block_bytes_total == 2 * 1024 * 1024


@pytest.mark.parametrize(
    ("gpu", "context", "length", "limits"),
    [
        ("h100", "server", 4096, (1024, 8192)),
        ("h100", "offline", 4096, (1024, 16384)),
        ("h200", "server", 4096, (1024, 8192)),
        ("b200", "server", 4096, (1024, 16384)),
        ("a100", "server", 4096, (256, 2048)),
        ("l40s", "offline", 4096, (256, 8192)),
        ("l40s", "server", 4, (256, 1024)),
    ],
)
def test_batch_limits_are_vllms(write, gpu: str, context: str, length: int, limits: tuple[int, int]) -> None:
    sets = [f"gpu={gpu}", f"engine.usage_context={context}", f"engine.max_model_len={length}"]
    e = resolve(load_config(write(GOOD), sets)).engine
    assert (e.max_num_seqs, e.max_num_batched_tokens) == limits


def test_batch_limits_of_a_huge_gpu_by_release(write) -> None:
    """160 GiB and more have limits of their own since 0.28."""
    found = [
        resolve(load_config(write(GOOD), ["gpu=b200", f"engine.vllm={r}"])).engine.max_num_batched_tokens
        for r in ("0.27", "0.28")
    ]
    assert found == [8192, 16384]


def test_prefix_caching_of_states_follows_the_release(write) -> None:
    sets = ["model=jamba-mini", "gpu=h200", "engine.tensor_parallel_size=4", "engine.max_model_len=8192"]
    found = {r: resolve(load_config(write(GOOD), [*sets, f"engine.vllm={r}"])) for r in ("0.27", "0.28")}
    assert [r.engine.enable_prefix_caching for r in found.values()] == [False, True]
    # running the resolved config gives the same run
    assert [r.config["engine"]["enable_prefix_caching"] for r in found.values()] == [False, True]


def test_a_default_max_num_seqs_follows_the_tokens(write) -> None:
    e = resolve(load_config(write(GOOD), ["engine.max_num_batched_tokens=100"])).engine
    assert (e.max_num_seqs, e.max_num_batched_tokens) == (100, 100)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["model=null"], "engine.num_gpu_blocks is auto, but model is not given"),
        (["gpu=null"], "engine.num_gpu_blocks is auto, but gpu is not given"),
        (["gpu=null", "engine.num_gpu_blocks=9000"], "step_time is missing, and the roofline needs gpu"),
        (["model=null", "engine.kv_cache_memory_bytes=9GiB"], "kv_cache_memory_bytes needs a model"),
        (["engine.block_size=1000000"], "for the KV cache on h100-80gb, and one block takes 122.1 GiB"),
        (["model=llama-3.1-70b"], "llama-3.1-70b leaves no room for a KV cache on h100-80gb"),
        (
            ["engine.max_model_len=auto", "engine.kv_cache_memory_bytes=1GiB"],
            "a pool of 512 blocks is smaller",
        ),
        (["engine.tensor_parallel_size=3"], "llama-3.1-8b has 32 heads and 8 key-value heads"),
        (["model=gone/config.json"], "no such model file 'gone/config.json'"),
        (["step_time={kind: table, path: gone.csv}"], "no such step-time file 'gone.csv'"),
    ],
)
def test_what_only_shows_when_resolved(write, sets: list[str], message: str) -> None:
    assert message in problems(write(GOOD), *sets)[0]


def test_memory_given_exactly(write) -> None:
    """VLLM.md 7.6: 10 GiB for 32 layers of 65536-byte pages are 5120 blocks."""
    r = resolve(load_config(write(GOOD), ["engine.kv_cache_memory_bytes=10GiB"]))
    assert (r.engine.num_gpu_blocks, r.pool.how) == (5120, "kv_cache_memory_bytes")


def test_costs_and_hints() -> None:
    assert [format_cost(x) for x in (5e5, 2.5, 1e9, 0.0, 7.0)] == ["500us", "2.5ns", "1s", "0ns", "7ns"]
    assert did_you_mean("H100", ["h100"]) == "did you mean 'h100'?"
    assert did_you_mean("zzz", ["h100"]) is None


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("{kv_cache_groups: [{type: sliding_window}]}", "a sliding_window group needs sliding_window"),
        ("{kv_cache_groups: [{type: chunked_local}]}", "a chunked_local group needs attention_chunk_size"),
        (
            "{kv_cache_groups: [{type: full, sliding_window: 8}]}",
            "sliding_window means nothing for a full group",
        ),
        (
            "{kv_cache_groups: [{type: mamba, mamba_cache_mode: none}, {type: full}]}",
            "mamba_cache_mode none with prefix caching on under vLLM 0.32",
        ),
        (
            "{kv_cache_groups: [{type: mamba, mamba_cache_mode: all}, {type: full}]}",
            "mamba_cache_mode all with prefix caching on under vLLM 0.32",
        ),
        (
            "{vllm: '0.14', kv_cache_groups: [{type: mamba, mamba_cache_mode: align}, {type: full}]}",
            "mamba_cache_mode align with prefix caching on under vLLM 0.14",
        ),
        (
            "{vllm: '0.25', kv_cache_groups: [{type: mamba, mamba_cache_mode: all},"
            " {type: mamba, mamba_cache_mode: align}, {type: full}]}",
            "mamba_cache_mode align, another group has all",
        ),
        (
            "{vllm: '0.31', kv_cache_groups: [{type: mamba, mamba_cache_mode: all,"
            " prefill_checkpoint_alignment: 1}, {type: full}]}",
            "no states are exported from inside a chunk in mamba_cache_mode all",
        ),
        ("{kv_cache_groups: [{type: full, block_size: 32}]}", "block_size 32 differs from block_size 16"),
        ("{prefix_match_unit: 8}", "with a single group hits end at blocks of 16 tokens"),
        (
            "{prefix_cache_retention_interval: null, num_speculative_tokens: 4, speculative_method: ngram,"
            " block_size: 4,"
            " kv_cache_groups: [{type: mamba, prefill_checkpoint_alignment: 1}]}",
            "states exported among 4 drafts, from blocks of 4 tokens",
        ),
        (
            "{prefix_match_unit: 5, kv_cache_groups: [{type: full}, {type: full, block_size: 32}]}",
            "prefix_match_unit 5 does not divide",
        ),
        (
            "{kv_cache_groups: [{type: chunked_local, attention_chunk_size: 64},"
            " {type: full, block_size: 32}]}",
            "chunked local attention beside groups of another block size",
        ),
        ("{prefix_cache_retention_interval: 64}", "without a sliding-window or Mamba group"),
        (
            "{prefix_cache_retention_interval: 40,"
            " kv_cache_groups: [{type: full}, {type: sliding_window, sliding_window: 64}]}",
            "is not a multiple of 16 tokens",
        ),
    ],
)
def test_groups_that_vllm_refuses(tmp_path: Path, engine: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(YAML(typ="safe").load(engine)))
    with pytest.raises(InputError, match=re.escape(message)):
        load_engine_json(path)
