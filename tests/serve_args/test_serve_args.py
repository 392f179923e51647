"""vLLM's own command lines and config files: read as vLLM reads them, classified without a gap."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.advice.settings import SETTINGS
from sim.cli import main
from sim.config import load_config
from sim.config_engine import EngineConfig
from sim.errors import InputError
from sim.resolve import Resolved, resolve
from sim.serve_args import ServeSource, serve_edit
from sim.serve_args.apply import human_int
from sim.serve_args.parse import parse_line
from sim.serve_args.table import ENGINE, flags, options, serve_option, unclassified
from workloads.generate import build

CONFIG = """\
model: llama-3.1-8b
gpu: l40s
engine: {block_size: 32, max_num_seqs: 7, vllm: "0.32"}
workload: {kind: random, arrivals: {kind: poisson, rate: 1}, num_requests: 4, prompt_len: 100, output_len: 9}
"""


def resolved(args: str | None, tmp_path: Path, file: str | None = None, gpu: str | None = "h100") -> Resolved:
    source = ServeSource(args, file, gpu)
    return resolve(load_config(None, (), None, [serve_edit(source)]))


def words(args: str) -> dict[str, object]:
    problems: list[InputError] = []
    found = {g.name: g.value for g in parse_line(args, problems)}
    assert problems == []
    return found


def complaint(args: str | None, file: str | None = None) -> list[str]:
    source = ServeSource(args, file, "h100")
    with pytest.raises(InputError) as e:
        load_config(None, (), None, [serve_edit(source)])
    return [str(p) for p in e.value.problems]


def test_every_option_is_in_one_class() -> None:
    assert unclassified() == []
    assert len(options()) > 300


def test_engine_keys_exist() -> None:
    keys = {key for key, _ in ENGINE.values() if key} - {"model"}
    assert keys <= set(EngineConfig.model_fields)


def test_the_table_read_backwards() -> None:
    assert flags()["policy"] == "--scheduling-policy"
    assert flags()["num_gpu_blocks"] == "--num-gpu-blocks-override"
    assert serve_option("enable_prefix_caching", False) == ["--no-enable-prefix-caching"]
    assert serve_option("watermark", 0.05) == ["--watermark", "0.05"]
    # What `sim recommend` prints is taken back.
    for name in SETTINGS:
        value = {"enable_prefix_caching": False, "watermark": 0.05, "gpu_memory_utilization": 0.9}.get(
            name, 64
        )
        assert next(iter(words(" ".join(serve_option(name, value))))) == flags()[name]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("serve m --max-num-seqs 5", {"--model": "m", "--max-num-seqs": "5"}),
        ("vllm serve m --max_num_seqs=5", {"--model": "m", "--max-num-seqs": "5"}),
        (
            "A=1 vllm serve m -tp 2 -q fp8",
            {"--model": "m", "--tensor-parallel-size": "2", "--quantization": "fp8"},
        ),
        ("m --no-enable-prefix-caching", {"--model": "m", "--enable-prefix-caching": False}),
        ("--enable-prefix-caching --no_enable_prefix_caching", {"--enable-prefix-caching": False}),
        ("--max-num-seqs 5 --max-num-seqs 6", {"--max-num-seqs": "6"}),
        ("--max-model-len -1", {"--max-model-len": "-1"}),
        (
            "-O3 --compilation-config.mode 3",
            {"--optimization-level": "3", "--compilation-config": '{"mode": 3}'},
        ),
        (
            '--speculative-config \'{"method": "ngram"}\'',
            {"--speculative-config": '{"method": "ngram"}'},
        ),
        ("--served-model-name a b --port 1", {"--served-model-name": ["a", "b"], "--port": "1"}),
        ("--max-num-batched 9", {"--max-num-batched-tokens": "9"}),
        ("python -m vllm.entrypoints.openai.api_server --model m", {"--model": "m"}),
        ("serve m \\\n  --port 1", {"--model": "m", "--port": "1"}),
        ("--hf-token --port 1", {"--hf-token": True, "--port": "1"}),
    ],
)
def test_lines_are_read_as_vllm_reads_them(args: str, expected: dict[str, object]) -> None:
    assert words(args) == expected


@pytest.mark.parametrize(
    "line",
    [
        "sudo docker run --gpus all -e HF_TOKEN=x -p 8000:8000 vllm/vllm-openai:latest --model m --port 1",
        "docker run rocm/vllm-dev:nightly vllm serve m --port 1",
        "export CUDA_VISIBLE_DEVICES=0; vllm serve m --port 1",
        "cd /srv && A=1 nohup bin/vllm serve m --port 1 > log.txt 2>&1 &",
        "numactl --cpunodebind=0 vllm serve m --port 1 2>/dev/null | tee log",
        '/bin/bash -lc "A=1 vllm serve m --port 1"',
        "uv run --with vllm vllm serve m --port 1",
        "A=1 serve m --port 1",
        '["vllm", "serve", "m", "--port", "1"]',
        "- vllm\n- serve\n- m\n- --port\n- 1\n",
        "  - --model=m\n  - --port=1\n",
        "A=1 python3 -m vllm.entrypoints.openai.api_server --model m --port 1",
    ],
)
def test_what_a_shell_does_around_the_command_is_left_out(line: str) -> None:
    assert words(line) == {"--model": "m", "--port": "1"}


def test_variables_that_matter_are_refused(tmp_path: Path) -> None:
    line = "VLLM_LOGGING_LEVEL=DEBUG VLLM_KV_CACHE_LAYOUT={} A=1 vllm serve Qwen/Qwen3-8B"
    assert complaint(line.format("BLHNC"))[0].startswith(
        "--vllm-args: VLLM_KV_CACHE_LAYOUT=BLHNC: layouts whose"
    )
    assert complaint("docker run --env=VLLM_MLA_DISABLE=1 vllm/vllm-openai --model Qwen/Qwen3-8B")
    source = ServeSource(line.format("HND"), None, "h100")
    load_config(None, (), None, [serve_edit(source)])
    assert source.notes[0] == "ignored: VLLM_LOGGING_LEVEL (variables)"


def test_a_run_of_a_model_and_a_gpu_alone(tmp_path: Path) -> None:
    line = ["--no-plots", "--out", str(tmp_path / "out"), "--set", "workload.duration=2s"]
    answer = CliRunner().invoke(main, ["run", "--model", "Qwen/Qwen3-0.6B", "--gpu", "l4", *line])
    assert answer.exit_code == 0
    assert "Qwen3-0.6B: finished" in answer.stdout
    assert "no config gives a workload" in answer.stderr
    answer = CliRunner().invoke(main, ["run", "--model", "qwen3", "--gpu", "l4", *line])
    assert answer.exit_code == 2
    assert answer.stderr.startswith("--model: unknown model 'qwen3'")
    answer = CliRunner().invoke(main, ["run", "--gpu", "l4"])
    assert "give a CONFIG, or --model and --gpu" in answer.stderr


def test_lines_that_start_no_server() -> None:
    assert "no image or command of vLLM's" in complaint("docker run mine --model Qwen/Qwen3-8B")[0]
    assert "--vllm-args: can't be read as a list of words" in complaint('["vllm", "serve"')[0]
    assert "vllm bench is not a server" in complaint("A=1 vllm bench serve --model Qwen/Qwen3-8B")[0]
    assert complaint("vllm serve $MODEL") == [
        "--vllm-args: '$MODEL' is a variable of a shell\n  hint: write the model's name instead"
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("32k", 32_000), ("32K", 32_768), ("25.6k", 25_600), ("2M", 2 << 20), ("1g", 10**9), ("17", 17)],
)
def test_human_numbers(text: str, value: int) -> None:
    assert human_int(text) == value


@pytest.mark.parametrize("text", ["1.5K", "x", "", "8kk"])
def test_human_numbers_refused(text: str) -> None:
    with pytest.raises(ValueError):
        human_int(text)


@pytest.mark.parametrize(
    ("option", "text", "key", "value"),
    [
        ("--max-num-scheduled-tokens", "1k", "max_num_scheduled_tokens", 1000),
        ("--max-num-scheduled-tokens", "None", "max_num_scheduled_tokens", None),
        ("--max-num-active-seqs", "100", "max_num_active_seqs", 100),
        ("--prefix-cache-retention-interval", "None", "prefix_cache_retention_interval", None),
    ],
)
def test_numbers_or_none(tmp_path: Path, option: str, text: str, key: str, value: int | None) -> None:
    assert getattr(resolved(f"Qwen/Qwen3-8B {option} {text}", tmp_path).engine, key) == value


@pytest.mark.parametrize("text", ["1k", "none", "null", "1.5"])
def test_numbers_or_none_that_vllm_refuses(text: str) -> None:
    """Only max_num_scheduled_tokens takes 1k, as in vLLM; None is spelled so."""
    problem = f"--vllm-args: --max-num-active-seqs must be a whole number or None, got '{text}'"
    assert complaint(f"Qwen/Qwen3-8B --max-num-active-seqs {text}") == [problem]


def test_options_reach_the_engine(tmp_path: Path) -> None:
    r = resolved(
        "serve Qwen/Qwen3-8B --max-num-seqs 33 --max-num-batched-tokens 4k --max-model-len 8K --block-size 32"
        " --scheduling-policy priority --no-async-scheduling --watermark 0.1 --kv-cache-dtype fp8"
        " --prefix-cache-retention-interval None --gpu-memory-utilization 0.8"
        " --long-prefill-token-threshold 512",
        tmp_path,
    )
    e = r.engine
    assert (e.max_num_seqs, e.max_num_batched_tokens, e.max_model_len, e.block_size) == (33, 4000, 8192, 32)
    assert (e.policy, e.async_scheduling, e.watermark, e.long_prefill_token_threshold) == (
        "priority",
        False,
        0.1,
        512,
    )
    assert e.prefix_cache_retention_interval is None
    assert r.config["engine"]["gpu_memory_utilization"] == 0.8
    assert r.pool.page_bytes == 32 * 2 * 8 * 128 * 36


def test_defaults_are_those_of_the_server(tmp_path: Path) -> None:
    for gpu, seqs, tokens in (
        ("h100", 1024, 8192),
        ("l40s", 256, 2048),
        ("b200", 1024, 16384),
        ("a100", 256, 2048),
    ):
        e = resolved("serve Qwen/Qwen3-8B", tmp_path, gpu=gpu).engine
        assert (e.max_num_seqs, e.max_num_batched_tokens, e.max_model_len) == (seqs, tokens, 40960)
    e = resolved("serve Qwen/Qwen3-8B --performance-mode throughput", tmp_path).engine
    assert (e.max_num_seqs, e.max_num_batched_tokens) == (2048, 16384)


def test_auto_length(tmp_path: Path) -> None:
    r = resolved("serve meta-llama/Llama-3.1-8B-Instruct --max-model-len auto", tmp_path, gpu="l4")
    assert r.engine.max_model_len == (r.engine.num_gpu_blocks - 1) * 16 < 131072


def test_a_config_gives_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    source = ServeSource("serve Qwen/Qwen3-8B --max-num-seqs 9 --max-model-len 4k --port 1")
    r = resolve(load_config(path, ["engine.watermark=0.1"], 3, [serve_edit(source)]))
    assert r.model is not None
    assert (r.model.name, r.gpu.name if r.gpu else "", r.seed) == ("qwen3-8b", "l40s", 3)
    # The engine section is replaced, but for the release; --set comes last.
    assert (r.engine.block_size, r.engine.max_num_seqs, r.engine.watermark, r.engine.vllm) == (
        16,
        9,
        0.1,
        "0.32",
    )
    assert source.notes == [
        f"replaced by vLLM's options: engine.block_size, engine.max_num_seqs of {path}",
        "ignored: --port (the API server and its clients)",
    ]
    # Without a model in the options the config's stays.
    kept = resolve(load_config(path, (), None, [serve_edit(ServeSource("--max-model-len 4k"))]))
    assert kept.model is not None
    assert kept.model.name == "llama-3.1-8b"


def test_default_workload_is_announced(tmp_path: Path) -> None:
    source = ServeSource("serve Qwen/Qwen3-8B", None, "h100")
    loaded = load_config(None, (), None, [serve_edit(source)])
    assert loaded.config.workload.kind == "chat"
    assert any("a chat of 1 session a second" in n for n in source.notes)
    assert loaded.name == "qwen3-8b"


def test_vllms_config_file(tmp_path: Path) -> None:
    path = tmp_path / "v.yaml"
    path.write_text(
        "model: meta-llama/Llama-3.1-8B-Instruct\nmax-num-seqs: 32\nmax_model_len: 16384\n"
        "no-enable-prefix-caching: true\nport: 8000\ncompilation-config:\n  mode: 3\nheadless: false\n"
        "allowed-origins: [a, b]\n"
    )
    e = resolved(None, tmp_path, str(path)).engine
    assert (e.max_num_seqs, e.max_model_len, e.enable_prefix_caching) == (32, 16384, False)
    # The command line counts more, also where it names the file itself.
    e = resolved(f"serve --config {path} --max-num-seqs 8", tmp_path).engine
    assert (e.max_num_seqs, e.enable_prefix_caching) == (8, False)


def test_false_in_vllms_config_file_is_dropped(tmp_path: Path) -> None:
    """As `vllm serve` 0.32.0 drops it; tests/validation/test_serve_args_vllm.py runs its parser."""
    path = tmp_path / "v.yaml"
    path.write_text("model: Qwen/Qwen3-8B\nenable-prefix-caching: false\nheadless: false\n")
    source = ServeSource(None, str(path), "h100")
    assert resolve(load_config(None, (), None, [serve_edit(source)])).engine.enable_prefix_caching
    dropped = f"{path}:2: 'enable-prefix-caching: false' is dropped, as vllm serve 0.32.0 drops it:"
    assert f"{dropped} `no-enable-prefix-caching: true` has the effect" in source.notes


def test_model_from_a_folder(tmp_path: Path) -> None:
    from sim.models import FOLDER

    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text((FOLDER / "qwen3-0.6b.json").read_text())
    for args in (
        f"serve {folder}",
        f"serve {folder}/config.json",
        f"serve who/knows --hf-config-path {folder}",
    ):
        r = resolved(args, tmp_path)
        assert r.model is not None
        assert (r.model.name, r.model.layers) == ("my-model", 28)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("serve Qwen/Qwen3-8B --blok-size 3", "no option --blok-size\n  hint: did you mean '--block-size'?"),
        ("serve Qwen/Qwen3-8B --max", "--max is the beginning of several options"),
        ("serve Qwen/Qwen3-8B -pp 2", "--pipeline-parallel-size: pipeline parallelism is not simulated"),
        (
            'serve Qwen/Qwen3-8B --kv-transfer-config \'{"kv_connector": "x"}\'',
            "KV connectors are not simulated",
        ),
        (
            "serve Qwen/Qwen3-8B -sc.method ngram",
            "--speculative-config: needs num_speculative_tokens",
        ),
        ("serve Qwen/Qwen3-8B --cpu-offload-gb 4", "also give --kv-cache-memory-bytes"),
        ("serve Qwen/Qwen3-8B -q awq", "--quantization: 'awq' is not known here"),
        ("serve Qwen/Qwen3-8B --max-model-len 1.5K", "--max-model-len must be a whole number"),
        ("serve Qwen/Qwen3-8B --kv-cache-dtype nvfp4", "'nvfp4' has pages that are not covered"),
        ("serve Qwen/Qwen3-8B --max-num-seqs", "--max-num-seqs needs a value"),
        ("serve Qwen/Qwen3-8B --enforce-eager=1", "--enforce-eager takes no value"),
        ("serve Qwen/Qwen3-8B more", "'more' belongs to no option"),
        ("serve who/knows-7b", "unknown model 'who/knows-7b'"),
        ("serve 'open", "can't be split into words"),
    ],
)
def test_refusals(args: str, message: str) -> None:
    assert message in "\n".join(complaint(args))


def test_harmless_values_pass(tmp_path: Path) -> None:
    resolved(
        "serve Qwen/Qwen3-8B -pp 1 -dp 1 --no-enable-lora --cpu-offload-gb 0 --runner generate"
        " --prefill-schedule-interval 1",
        tmp_path,
    )
    # The size of the pool is given, so what else is in the memory does not matter.
    resolved("serve Qwen/Qwen3-8B -q awq --cpu-offload-gb 4 --kv-cache-memory-bytes 20g", tmp_path)


def test_all_problems_at_once_with_places(tmp_path: Path) -> None:
    path = tmp_path / "v.yaml"
    path.write_text("model: Qwen/Qwen3-8B\nmax-num-seqz: 3\npipeline-parallel-size: 2\nmax-model-len: many\n")
    found = [line.splitlines()[0] for line in complaint(None, str(path))]
    assert found == [
        f"{path}:2:1: vllm serve 0.32.0 has no option --max-num-seqz",
        f"{path}:3:25: --pipeline-parallel-size: pipeline parallelism is not simulated",
        f"{path}:4:16: --max-model-len must be a whole number, one such as 32k (32000) or 32K (32768), or"
        " auto, got 'many'",
    ]


def test_command(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    out = tmp_path / "run"
    args = [
        "run",
        str(path),
        "--vllm-args",
        "serve Qwen/Qwen3-8B --max-model-len 4k --port 1",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(main, [*args, "--no-plots"])
    assert result.exit_code == 0, result.stderr
    assert "note: ignored: --port" in result.stderr
    # The resolved config of the run gives the same engine without vLLM's options.
    again = resolve(load_config(out / "config.yaml"))
    assert again.engine == resolve(load_config(path, (), None, [serve_edit(ServeSource(args[3]))])).engine
    result = CliRunner().invoke(main, ["run"])
    assert result.exit_code == 2
    assert "give a CONFIG" in result.stderr


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([*options(), "-tp", "--x", "7", "a b", "--", "-1", "'", "--no-async-scheduling"])
    )
)
def test_any_line_is_read_or_refused(parts: list[str]) -> None:
    line = " ".join(parts)
    if line.count("'") % 2:
        with pytest.raises(InputError, match="split into words"):
            parse_line(line, [])
        return
    problems: list[InputError] = []
    given = parse_line(line, problems)
    assert all(g.name in options() or g.name == "--model" for g in given)


def drafts(args: str, *overrides: str) -> tuple[str | None, int, bool]:
    """Method, tokens and whether scheduling is asynchronous."""
    loaded = load_config(
        None, overrides, None, [serve_edit(ServeSource(f"serve Qwen/Qwen3-8B {args}", None, "h100"))]
    )
    engine = resolve(loaded).engine
    return engine.speculative_method, engine.num_speculative_tokens, engine.async_scheduling


def test_drafts_are_read() -> None:
    often = "engine.draft_acceptance=0.6"
    json_form = """-sc '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}'"""
    # asynchronous scheduling is off for n-grams by default
    assert drafts(json_form, often) == ("ngram", 5, False)
    assert drafts("--spec-model [ngram] --spec-tokens 2", often) == ("ngram", 2, False)
    sized = "--num-gpu-blocks-override 20000 --spec-tokens 3"
    assert drafts(f"{sized} -sc.method eagle3 -sc.draft-tensor-parallel-size 1", often) == ("eagle", 3, True)
    assert drafts(f"{sized} --spec-model some/eagle3-head", often) == ("eagle", 3, True)
    assert drafts("--spec-model Qwen/Qwen3-0.6B --spec-tokens 3", often) == ("draft_model", 3, True)
    assert drafts("-sc None") == (None, 0, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--spec-method suffix --spec-tokens 2", "drafts by 'suffix' are not simulated"),
        ("--spec-method ngram --spec-tokens x", "--spec-tokens must be a whole number"),
        ("--spec-method ngram --spec-tokens 0", "num_speculative_tokens must be >= 1"),
        ("-sc '{bad'", "--speculative-config must be JSON"),
        ("-sc '[1]'", "--speculative-config must be a JSON object"),
        ("-sc.method ngram -sc.num_speculative_token 2", "did you mean 'num_speculative_tokens'?"),
        (
            "--spec-method ngram --spec-tokens 2 -sc.parallel_drafting true",
            "parallel_drafting is not simulated",
        ),
        ("--spec-tokens 2", "--spec-tokens: needs a method, or a model"),
    ],
)
def test_drafts_that_are_refused(args: str, message: str) -> None:
    assert message in "\n".join(complaint(f"serve Qwen/Qwen3-8B {args}"))


def test_drafts_need_to_know_how_often_they_are_right() -> None:
    with pytest.raises(InputError, match="drafts need draft_acceptance"):
        drafts("--spec-method ngram --spec-tokens 2")
    with pytest.raises(InputError, match="vLLM refuses this"):
        drafts("--spec-method ngram --spec-tokens 2 --async-scheduling", "engine.draft_acceptance=0.6")


def test_an_image_of_vllm() -> None:
    line = "docker run --gpus all -p 8000:8000 --ipc=host vllm/vllm-openai:v0.32.0 --model Qwen/Qwen3-8B"
    assert words(line) == {"--model": "Qwen/Qwen3-8B"}


def test_other_commands_of_vllm_are_named() -> None:
    (said,) = complaint("vllm bench serve --model Qwen/Qwen3-8B")
    assert "--vllm-args: can't be read as a list of words" in complaint('["vllm", "serve"')[0]
    assert "vllm bench is not a server" in said
    assert words("vllm serve Qwen/Qwen3-8B") == {"--model": "Qwen/Qwen3-8B"}


def test_hints_name_near_options_only() -> None:
    assert "did you mean '--max-num-seqs'?" in complaint("serve Qwen/Qwen3-8B --max-nun-seqs 3")[0]
    assert "did you mean" not in complaint("serve Qwen/Qwen3-8B --rope-scaling 3")[0]


@pytest.mark.parametrize(
    ("line", "kind", "longest"),
    [
        ("serve Qwen/Qwen3-8B", "chat", 8000),
        ("serve Qwen/Qwen3-8B --max-model-len 1K", "chat", 1024),
        ("serve Qwen/Qwen3-8B --max-model-len auto", "chat", 8000),
        ("serve mistralai/Mamba-Codestral-7B-v0.1", "chat", 2048),
        ("serve openai/whisper-large-v3", "random", 448),
    ],
)
def test_a_workload_that_stands_in_fits_the_model(line: str, kind: str, longest: int) -> None:
    source = ServeSource(line, None, "h100")
    loaded = load_config(None, ["workload.duration=20s"], None, [serve_edit(source)])
    assert loaded.config.workload.kind == kind
    assert ("shortened" in source.notes[-1]) == (kind == "chat" and longest < 8000)
    workload = build(loaded.config.workload, loaded.config.seed)
    lengths = workload.prompt_len + workload.output_len
    assert len(workload) > 10
    assert longest // 20 < lengths.max() <= longest
