"""Step-time models: the arithmetic, the twin against the jitted function, a table recovered from steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.core.jit import entry
from sim.core.state import StepTime as CoreStepTime
from sim.core.step_time import step_duration_ns
from sim.errors import InputError
from sim.gpus import GPUS, find_gpu, gpu_names
from sim.models import FOLDER, find_model, load_model, model_names
from sim.models.quantization import FP8
from sim.step_table import fill_holes, fit, load_table, monotone
from sim.step_time import BatchFeatures, StepTime, affine, constant, duration_ns, roofline, table

MODELS: dict[str, StepTime] = {
    "constant": constant(1234.5),
    "affine": affine(1000.25, 3.5, 100.0, 0.125),
    "roofline": roofline(find_model("llama-3.1-8b"), find_gpu("h100")),  # type: ignore[arg-type]
    "encoder": roofline(find_model("whisper-large-v3"), find_gpu("l4")),  # type: ignore[arg-type]
    "affine with an encoder": affine(1000.25, 3.5, 100.0, 0.125, 7.75),
    "table": table([1, 10, 100], [0, 1000], np.array([[5, 50], [10, 100], [90, 900]], float)),
}

CORE_MODELS = {name: CoreStepTime(**model._asdict()) for name, model in MODELS.items()}


@entry
def core_duration_ns(model, t, p, d, c, a, k, q, e, f, x, y):  # type: ignore[no-untyped-def]
    """The core's helper, called from Python."""
    return step_duration_ns(model, t, p, d, c, a, k, q, e, f, x, y)


def test_simple_models() -> None:
    assert duration_ns(MODELS["constant"], BatchFeatures(1)) == 1234
    assert duration_ns(MODELS["constant"], BatchFeatures(0)) == 0
    assert duration_ns(constant(0), BatchFeatures(5)) == 1
    assert duration_ns(MODELS["affine"], BatchFeatures(30, 28, 2, 400)) == round(1000.25 + 98 + 200 + 50)
    with pytest.raises(ValueError, match="not negative"):
        constant(-1)


def test_table_interpolates_and_clamps() -> None:
    t = MODELS["table"]
    assert duration_ns(t, BatchFeatures(1)) == 5
    assert duration_ns(t, BatchFeatures(10, decode_context=400, prefill_context=100)) == 55
    assert duration_ns(t, BatchFeatures(55)) == 50
    assert duration_ns(t, BatchFeatures(10**6, decode_context=10**9)) == 900
    with pytest.raises(ValueError, match="ascend"):
        table([1, 1], [0], np.zeros(2))
    with pytest.raises(ValueError, match="cells"):
        table([1, 2], [0], np.zeros(3))


def test_roofline_of_llama_8b_on_h100() -> None:
    """Small decodes wait for the weights, large prefills for the multipliers; orders known from practice."""
    r = MODELS["roofline"]
    one = duration_ns(r, BatchFeatures(1, 0, 1, 1000, 0, 0, 1)) / 1e6
    prefill = duration_ns(r, BatchFeatures(8192, 8192, 0, 0, 8192 * 8193 // 2, 8192, 1)) / 1e6
    weights = (6979321856 + 128256 * 4096) * 2 / (3350e9 * 0.75) * 1e3
    assert one == pytest.approx(weights + 0.5 + 1000 * 131072 / (3350e9 * 0.75) * 1e3, rel=1e-2)
    compute = (2 * 6979321856 * 8192 + 4 * 4096 * 32 * 8192 * 8193 / 2) / (989.4e12 * 0.5) * 1e3
    assert prefill == pytest.approx(compute + 0.5, rel=1e-3)


def test_roofline_of_whisper_on_an_l4() -> None:
    """An encoder input waits for the multipliers, decodes for the keys and values of the encoder's output."""
    r, m, g = MODELS["encoder"], find_model("whisper-large-v3"), find_gpu("l4")
    assert m is not None
    assert g is not None
    decode = BatchFeatures(64, 0, 64, 64 * 100, 0, 0, 64, encoder_context=64 * 1500, cross_pairs=64 * 1500)
    cross = 64 * 1500 * 32 * 2 * 1280 * 2 / (g.memory_bandwidth * 0.75) * 1e9
    without = duration_ns(r, decode._replace(encoder_context=0, cross_pairs=0))
    assert duration_ns(r, decode) - without == pytest.approx(cross, rel=1e-3)
    with_input = duration_ns(r, decode._replace(encoder_tokens=1500, encoder_pairs=1500**2))
    layers = 32 * (4 * 1280**2 + 2 * 1280 * 5120)
    flops = 2 * (layers + 32 * 2 * 1280**2) * 1500 + 4 * 1280 * 32 * 1500**2
    assert with_input - duration_ns(r, decode) == pytest.approx(flops / (g.bf16_flops * 0.5) * 1e9, rel=1e-3)


def test_tensor_parallel_and_quantization() -> None:
    m, g = find_model("llama-3.1-70b"), find_gpu("h100")
    assert m is not None
    assert g is not None
    decode = BatchFeatures(64, 0, 64, 64 * 1000, 0, 0, 64)
    times = [duration_ns(roofline(m, g, tensor_parallel=tp), decode) for tp in (1, 2, 4, 8)]
    assert times == sorted(times, reverse=True)
    assert times[0] / times[3] < 8
    assert duration_ns(roofline(m, g, quantization=FP8), decode) < 0.6 * times[0]
    half = roofline(m, g, kv_dtype_bytes=1)
    assert half.coef[5] == roofline(m, g).coef[5] / 2


@given(
    kind=st.sampled_from(sorted(MODELS)),
    features=st.tuples(
        st.integers(0, 20_000),
        st.integers(0, 20_000),
        st.integers(0, 2_000),
        st.integers(0, 10**8),
        st.integers(0, 10**10),
        st.integers(0, 10**8),
        st.integers(0, 2_000),
        st.integers(0, 20_000),
        st.integers(0, 10**9),
        st.integers(0, 10**6),
        st.integers(0, 10**8),
    ),
)
def test_twin_equals_the_core(kind: str, features: tuple[int, ...]) -> None:
    assert int(core_duration_ns(CORE_MODELS[kind], *features)) == duration_ns(MODELS[kind], features)


def test_fit_recovers_an_affine_engine() -> None:
    rng = np.random.default_rng(1)
    tokens = np.exp(rng.uniform(0, 9, 20_000)).astype(np.int64).astype(float)
    context = np.exp(rng.uniform(0, 13, 20_000)).astype(np.int64).astype(float)
    truth = 5e6 + 20_000 * tokens + 30 * context
    model = fit(tokens, context, truth * rng.lognormal(0, 0.02, tokens.size), 24, 16)
    for t, c in ((1, 1), (40, 5000), (700, 90_000), (5000, 300_000)):
        want = 5e6 + 20_000 * t + 30 * c
        got = duration_ns(model, BatchFeatures(t, decode_context=c))
        assert got == pytest.approx(want, rel=0.08), (t, c)
    grid = model.table.reshape(model.axis_tokens.size, model.axis_context.size)
    assert np.all(np.diff(grid, axis=0) >= 0)
    assert np.all(np.diff(grid, axis=1) >= 0)


def test_holes_and_monotony() -> None:
    cells = np.array([[1.0, np.nan, 5.0], [np.nan, np.nan, np.nan], [3.0, np.nan, 9.0]])
    full = fill_holes(cells)
    assert not np.isnan(full).any()
    assert full[0, 1] == 3.0
    assert np.all(np.diff(monotone(full), axis=0) >= 0)
    assert np.all(np.diff(monotone(full), axis=1) >= 0)
    already = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert np.array_equal(monotone(already), already)
    assert fill_holes(np.array([[np.nan, 2.0], [3.0, np.nan]])).tolist() == [[2.0, 2.0], [3.0, 3.0]]


def test_table_files(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text("context_tokens,duration_ms,scheduled_tokens\n10,1.5,1\n20,2.5,8\n0,0,0\n")
    model = load_table(path)
    assert duration_ns(model, BatchFeatures(1, decode_context=10)) == 1_500_000
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"scheduled_tokens": [1, 8], "context_tokens": [10, 20], "duration_us": [1500.0, 2500.0]}
    pq.write_table(pa.table(rows), tmp_path / "steps.parquet")
    again = load_table(tmp_path / "steps.parquet")
    assert np.array_equal(model.table, again.table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("scheduled_tokens,contxt_tokens,duration_ms\n", "1:1: the column 'context_tokens' is missing"),
        ("scheduled_tokens,context_tokens,time\n", "1:1: one of the columns duration_ns"),
        ("scheduled_tokens,context_tokens,duration_ms\n1,2,x\n", ":2:5: 'duration_ms' must be a number"),
        ("scheduled_tokens,context_tokens,duration_ms\n1,2,3\n4,,5\n", ":3:3: 'context_tokens' must be"),
        ("scheduled_tokens,context_tokens,duration_ms\n", "no step with scheduled tokens"),
    ],
)
def test_broken_table_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(text)
    with pytest.raises(InputError) as e:
        load_table(path)
    assert message in str(e.value)


PARAMETERS = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_248_023_552,
    "phi-4": 14_659_507_200,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "qwen3-0.6b": 596_049_920,
}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    model = find_model(name)
    assert model is not None
    assert model.num_params == PARAMETERS[name]


def test_catalogues() -> None:
    assert {"h100-80gb", "h200", "a100-80gb", "a100-40gb", "l40s", "b200"} <= set(GPUS)
    assert all(find_gpu(n) for n in gpu_names())
    assert all(find_model(n) for n in model_names())
    assert all(g.source and "data sheet" in g.source for g in GPUS.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "glm", "num_experts": 8}, "a model of type 'glm' with experts is not known"),
        ({"model_type": "glm", "kv_lora_rank": 512}, "with multi-head latent attention is not known"),
        ({"layer_types": ["full_attention"]}, "'layer_types' must be a list of 32 texts"),
        ({"layer_types": ["linear_attention"] * 32}, "layers of type 'linear_attention'"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantization 'hqq' is not known"),
        ({"hidden_size": "4096"}, "'hidden_size' must be a whole number from 1"),
        ({"num_hidden_layers": None}, "'num_hidden_layers' must be a whole number from 1: it is missing"),
        ({"num_key_value_heads": 5}, "32 heads can't share 5 key-value heads"),
        ({"torch_dtype": "int3"}, "unknown dtype 'int3'"),
    ],
)
def test_model_files(tmp_path: Path, change: dict, message: str) -> None:
    base = json.loads((FOLDER / "llama-3.1-8b.json").read_text())
    folder = tmp_path / "my-model"
    folder.mkdir()
    path = folder / "config.json"
    path.write_text(json.dumps(base, indent=1))
    model = load_model(path)
    assert (model.name, model.num_params) == ("my-model", 8_030_261_248)
    path.write_text(json.dumps({**base, **change}, indent=1))
    with pytest.raises(InputError, match=message) as e:
        load_model(path)
    assert e.value.line is not None
