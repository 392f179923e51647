"""Layer specs of the shipped models, against recorded answers of vLLM's own model classes and planner."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from sim.engine_settings import KVCacheGroup
from sim.errors import InputError
from sim.models import FOLDER, find_model, known_name, load_model, model_names
from sim.serve_args import ServeSource
from sim.sizing import CacheArgs, Limits, cache_layout, core_groups, plan_pool, weight_bytes
from sim.sizing.layers import backend_of
from sim.sizing.report import budget_of
from validation.sizing.recordings import answers

RECORDED = Path(__file__).parents[1] / "recorded_vllm" / "sizing.json"

#: Parameters as the models' makers, or the tensors of vLLM's classes, count them.
PARAMETERS = {
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_404_352,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "gpt-oss-20b": 20_914_757_184,
    "jamba-mini": 51_570_323_328,
    "mamba-codestral-7b": 7_285_403_648,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-next-80b-a3b": 79_674_391_296,
    "whisper-large-v3": 1_543_613_440,
}


def test_recorded_answers_of_vllm() -> None:
    """Groups, their order, block and page sizes, blocks, tokens and concurrency of every shipped model."""
    asked = list(answers(RECORDED))
    different = [f"{what}\n  vLLM {real}\n  ours {ours}" for what, real, ours in asked if real != ours]
    assert different == []
    models = Counter(what.split("'model': '")[1].split("'")[0] for what, _, _ in asked if "'model'" in what)
    assert set(models) == set(model_names()) - {"llama-3.2-11b-vision"}
    assert sum(not what.startswith("mix") and "refused" not in real for what, real, _ in asked) > 400


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    model = find_model(name)
    assert model is not None
    assert model.num_params == PARAMETERS[name]


def test_every_model_says_where_it_is_from() -> None:
    import json

    from sim.models import FOLDER

    for name in model_names():
        data = json.loads((FOLDER / f"{name}.json").read_text())
        assert len(data["_source"]) > 20
        assert data["architectures"]


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
        ("google/gemma-3-27b-it", "gemma-3-27b"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama-4-scout"),
        ("mistralai/Mistral-7B-Instruct-v0.1", "mistral-7b-v0.1"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "qwen3-next-80b-a3b"),
        ("mistralai/Ministral-8B-Instruct-2410", "ministral-8b"),
        ("someone/llama-3.1-9b", None),
    ],
)
def test_published_names(published: str, ours: str | None) -> None:
    assert known_name(published) == ours


def test_a_state_makes_blocks_larger() -> None:
    """Qwen3-Next on one GPU: a state of 1,072 KiB needs 544 tokens of 2 KiB, the next multiple of 16."""
    model = find_model("qwen3-next-80b-a3b")
    assert model is not None
    layout = cache_layout(model, CacheArgs(None))
    assert (layout.block_size, layout.asked_block_size) == (544, 16)
    assert {s.page_bytes for s in layout.specs} == {544 * 2048}
    # The block size that the user gives is the unit.
    assert cache_layout(model, CacheArgs(block_size=128)).block_size == 640
    off = cache_layout(model, CacheArgs(None, enable_prefix_caching=False, max_model_len=4096))
    assert {s.block_size for s in off.specs if s.kind == "mamba"} == {4096}
    wide = cache_layout(model, CacheArgs(None, mamba_ssm_cache_dtype="float32"))
    assert wide.block_size > 544


def groups_of(name: str, **changes: object) -> tuple[KVCacheGroup, ...]:
    model = find_model(name)
    assert model is not None
    layout = cache_layout(model, CacheArgs(None, **changes))  # type: ignore[arg-type]
    plan = plan_pool(layout.specs, 2**36, Limits(4096, 16384, 8192))
    return core_groups(plan, layout.block_size, model.encoder_tokens)


def test_groups_as_the_core_takes_them() -> None:
    full = KVCacheGroup()
    window = KVCacheGroup("sliding_window", sliding_window=128)
    assert groups_of("deepseek-v3") == groups_of("llama-3.1-8b") == (full,)
    assert groups_of("gpt-oss-20b") == (window, full)
    assert groups_of("llama-4-scout")[0] == KVCacheGroup("chunked_local", attention_chunk_size=8192)
    assert groups_of("jamba-mini")[-2:] == (KVCacheGroup("mamba", mamba_cache_mode="align"), full)
    assert groups_of("whisper-large-v3")[1] == KVCacheGroup("cross_attention", encoder_tokens=1500)
    mamba2 = KVCacheGroup("mamba", mamba_cache_mode="align", prefill_checkpoint_alignment=1)
    assert groups_of("mamba-codestral-7b") == (mamba2,)
    off = groups_of("mamba-codestral-7b", enable_prefix_caching=False)
    assert off == (KVCacheGroup("mamba", 4096, mamba_cache_mode="none"),)


def test_default_block_sizes_by_gpu() -> None:
    mla, dense = find_model("deepseek-v3"), find_model("llama-3.1-8b")
    assert mla is not None
    assert dense is not None
    preferred = [
        backend_of(mla, c, d).preferred for c, d in ((90, "auto"), (90, "fp8"), (100, "auto"), (80, "auto"))
    ]
    assert preferred == [16, 64, 32, 16]
    assert {backend_of(dense, c, d).preferred for c in (80, 89, 90, 100) for d in ("auto", "fp8")} == {16}


#: "Model loading took ... GiB" in start-up logs of vLLM 0.10 to 0.19 that are public.
LOADED = {"llama-3.1-8b": 14.99, "mistral-7b": 13.51, "gemma-3-27b": 51.45, "gpt-oss-20b": 13.72}


@pytest.mark.parametrize("name", LOADED)
def test_weights_in_public_logs(name: str) -> None:
    model = find_model(name)
    assert model is not None
    assert weight_bytes(model, 1, None) / 2**30 == pytest.approx(LOADED[name], rel=0.01)


def test_pool_in_a_public_log() -> None:
    """Llama 3.1 8B: 'Available KV cache memory: 19.28 GiB', '157,936 tokens', '1.20x' for 131,072 tokens."""
    model = find_model("llama-3.1-8b")
    assert model is not None
    specs = cache_layout(model, CacheArgs(None)).specs
    plan = plan_pool(specs, round(19.28 * 2**30), Limits(131072, 2 * 8192))
    assert (plan.tokens, round(plan.max_concurrency, 2)) == (157_936, 1.20)


def test_weights_are_split_and_repeated() -> None:
    model = find_model("llama-3.1-8b")
    assert model is not None
    one, two, sixteen = (weight_bytes(model, tp, None) for tp in (1, 2, 16))
    assert one == 2 * model.num_params
    norms = 2 * model.params.whole
    assert two == (one - norms) // 2 + norms
    # 8 key-value heads on 16 GPUs: each is there twice.
    assert sixteen > (one - norms) // 16 + norms
    assert weight_bytes(model, 1, "fp8") < 0.6 * one
    mxfp4 = find_model("gpt-oss-20b")
    assert mxfp4 is not None
    assert weight_bytes(mxfp4, 1, None) < 0.36 * 2 * mxfp4.num_params


LENGTH = 8192


@pytest.mark.parametrize(
    ("keys", "default", "limit"),
    [
        ({}, LENGTH, LENGTH),
        # the length that these name is already scaled
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, LENGTH, LENGTH),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, LENGTH, LENGTH),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 4 * LENGTH, 4 * LENGTH),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 2 * LENGTH, 2 * LENGTH),
        (
            {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096},
            4096,
            LENGTH,
        ),
        ({"model_max_length": 16384}, LENGTH, 16384),
        ({"max_position_embeddings": None}, 4096, None),
    ],
)
def test_longest_sequence(tmp_path: Path, keys: dict[str, object], default: int, limit: int | None) -> None:
    """As vLLM's _get_and_verify_max_len: the default, and what a user may ask for."""
    config = json.loads((FOLDER / "llama-3.2-1b.json").read_text())
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config | {"max_position_embeddings": LENGTH} | keys))
    shape = load_model(file)
    assert (shape.max_position, shape.length_limit) == (default, limit)


def test_longer_sequences_than_the_models_are_refused() -> None:
    line = "serve Qwen/Qwen3-32B --max-model-len"
    with pytest.raises(InputError, match="max_model_len 131072 is longer than qwen3-32b allows"):
        budget_of(None, ServeSource(f"{line} 131072", None, "h200"))
    assert budget_of(None, ServeSource(f"{line} 40960", None, "h200")).plan.starts


@pytest.mark.parametrize(
    ("line", "gpu", "block"),
    [
        ("deepseek-ai/DeepSeek-R1 -tp 8", "h200", 16),
        ("deepseek-ai/DeepSeek-R1 -tp 8 --attention-backend FLASHMLA", "h200", 64),
        ("deepseek-ai/DeepSeek-R1 -tp 8 --attention-config.backend cutlass_mla", "b200", 128),
        ("deepseek-ai/DeepSeek-R1 -tp 8 --attention-backend TRITON_MLA", "b200", 16),
        ("deepseek-ai/DeepSeek-R1 -tp 8 --attention-backend FLASHMLA --block-size 128", "h200", 128),
        ("Qwen/Qwen3-8B --attention-backend FLASHINFER", "h200", 16),
        ("""Qwen/Qwen3-8B --attention-config '{"use_trtllm_attention": true}'""", "b200", 16),
    ],
)
def test_the_backend_decides_the_block_size(line: str, gpu: str, block: int) -> None:
    assert budget_of(None, ServeSource(f"serve {line}", None, gpu)).settings.block_size == block


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("deepseek-ai/DeepSeek-R1 -tp 8 --attention-backend FLASH_ATTN", "FLASH_ATTN can't be used"),
        ("Qwen/Qwen3-8B --attention-backend FLASHMLA", "FLASHMLA can't be used for qwen3-8b"),
        ("Qwen/Qwen3-8B --attention-backend XFORMERS", "block sizes of 'XFORMERS' are not known"),
        ("google/gemma-3-1b-it --attention-backend FLASH_ATTN", "heads of 256 on Blackwell are not covered"),
        ("Qwen/Qwen3-8B --attention-config 3", "--attention-config must be a JSON object"),
        ("""Qwen/Qwen3-8B --attention-config '{"backend_per_kind": {"a": "b"}}'""", "by kind of group"),
    ],
)
def test_backends_that_are_refused(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        budget_of(None, ServeSource(f"serve {line}", None, "b200"))
