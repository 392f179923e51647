"""`python -m workloads`: what it prints, exit codes, lazy imports; the YAML files of configs/."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from workloads.cli import main, show
from workloads.errors import WorkloadError
from workloads.generate import build
from workloads.readers import read_trace
from workloads.yaml_section import load_section

ROOT = Path(__file__).resolve().parents[2]
#: Those of one run; sweeps have their own test.
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.yaml") if "\naxes:" not in p.read_text())


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(
        "seed: 5\nmodel: anything\nworkload:\n  kind: chat\n  arrivals: {kind: poisson, rate: 2}\n"
        "  num_sessions: 20\n  system_len: 64\n"
    )
    return path


def test_describe_prints_text_or_json(config: Path) -> None:
    text = run("describe", config)
    assert text.exit_code == 0
    assert re.search(r"sessions +20\n", text.stdout)
    assert "hit rate, vLLM's" in text.stdout
    summary = json.loads(run("describe", config, "--json", "--block-size", "32").stdout)
    assert summary["reuse"]["block_size"] == 32
    assert "LRU of 1,000 blocks" in run("describe", config, "--lru", "100,1000").stdout
    assert summary["source"]["seed"] == 5
    other = json.loads(run("describe", config, "--json", "--seed", "6").stdout)
    assert other["trace_hash"] != summary["trace_hash"]


def test_convert_and_replay(config: Path, tmp_path: Path) -> None:
    made = run("convert", config, tmp_path / "w.parquet")
    assert made.exit_code == 0
    assert run("convert", tmp_path / "w.parquet", tmp_path / "w.jsonl.gz").exit_code == 0
    spec, seed = load_section(config)
    trace_hash = build(spec, seed).content_hash()
    assert trace_hash in made.stdout
    assert read_trace(tmp_path / "w.jsonl.gz").content_hash() == trace_hash
    logical = run("convert", config, tmp_path / "l.jsonl.gz", "--to", "logical", "--step", "20ms")
    assert logical.exit_code == 0
    assert "nominal steps" in logical.stderr
    assert read_trace(tmp_path / "l.jsonl.gz").clock == "logical"


def test_options_reach_the_reader(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000 * i, "input_length": 20, "output_length": 2, "hash_ids": [i, 50]} for i in range(9)
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [
        "--hash-block-size",
        16,
        "--max-requests",
        4,
        "--time-scale",
        0.5,
        "--format",
        "mooncake",
        "--json",
    ]
    summary = json.loads(run("describe", path, *options).stdout)
    assert summary["requests"] == 4
    assert summary["arrivals"]["span_s"] == 1.5
    (tmp_path / "v.jsonl").write_text('{"prompt_len": 4}\n')
    assert (
        json.loads(run("describe", tmp_path / "v.jsonl", "--output-len", 7, "--json").stdout)["output_tokens"]
        == 7
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "none.jsonl"], r"none\.jsonl: no such file"),
        (["describe", "bad.jsonl"], r"bad\.jsonl:1:2: not valid JSON"),
        (["describe", "bad.yaml"], r"bad\.yaml:3:3: unknown key 'kin'"),
        (
            ["describe", "ok.yaml", "--time-scale", "2"],
            r"ok\.yaml: options of traces do not apply to a YAML config",
        ),
        (["describe", "ok.csv", "--seed", "2"], r"ok\.csv: --seed has no meaning for a trace"),
        (["describe", "ok.csv", "--lru", "10,x"], r"error: --lru: expected numbers of blocks .*, got 'x'"),
        (["convert", "ok.csv", "out.txt"], r"out\.txt: a workload is written as one of"),
        (["convert", "ok.csv", "no/out.jsonl"], r"no/out\.jsonl: cannot be written"),
        (
            ["convert", "ok.csv", "o.jsonl", "--to", "logical"],
            r"error: the workload is in time: say how long",
        ),
        (
            ["convert", "ok.csv", "o.jsonl", "--to", "logical", "--step", "x"],
            r"error: --step: expected a number",
        ),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text("{hello\n")
    Path("bad.yaml").write_text("workload:\n  kind: batch\n  kin: 3\n  num_requests: 3\n")
    Path("ok.yaml").write_text("workload:\n  kind: batch\n  num_requests: 3\n")
    Path("ok.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,3,4\n")
    before = sorted(tmp_path.iterdir())
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.match(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("workload:\n  kind: chat\n", ["1:1: the key 'arrivals' is missing"]),
        ("workload:\n  kind: chta\n", ["1:1: kind 'chta' is not known; use one of 'chat', 'agents'"]),
        ("workload:\n  rate: 3\n", ["1:1: workload: the key 'kind' is missing; use one of chat"]),
        ("workload: [1]\n", ["1:1: workload: expected a mapping with a `kind`"]),
        (
            "workload:\n  kind: random\n  num_requests: 4\n  prompt_len: 4k\n"
            "  arrivals:\n    kind: poisson\n    rate: -1\n",
            [
                "7:5: rate: input should be greater than 0",
                "4:3: prompt_len: expected an integer number of tokens",
            ],
        ),
        (
            "workload:\n  kind: batch\n  num_request: 4\n",
            ["missing", "3:3: unknown key 'num_request'; did you mean 'num_r"],
        ),
        ("name: x\n", ["1:1: has no `workload:` section"]),
        (
            "seed: -1\nworkload: {kind: batch, num_requests: 1}\n",
            ["1:1: seed must be an integer of at least 0"],
        ),
        ("workload: {kind: batch\n", ["not valid YAML: expected ',' or '}'"]),
        ("workload:\n  kind: batch\n  kind: chat\n", [r"3:3: not valid YAML: found duplicate key \"kind\""]),
    ],
)
def test_every_problem_of_a_section_has_its_place(text: str, problems: list[str], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(WorkloadError) as caught:
        load_section(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    for problem in problems:
        assert problem.replace("\\", "") in message


def test_help_is_light() -> None:
    heavy = ["numpy", "simpy", "pydantic", "ruamel", "pyarrow", "rich", "numba"]
    program = (
        "import sys\nfrom workloads.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "describe" in done.stdout
    assert done.stderr.strip() == "[]"


def test_a_terminal_gets_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    show([("", "Requests"), ("requests", "12")], "x.csv")
    assert "requests" in capsys.readouterr().out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_of_the_repository(path: Path) -> None:
    text = path.read_text()
    if "\nworkload:" not in text:
        pytest.skip("has no workload section")
    spec, seed = load_section(path)
    if spec.kind == "trace":
        from workloads.files import resolve

        try:
            resolve(spec.path, path.parent)
        except WorkloadError as error:
            pytest.skip(f"the trace is not here: {error}")
    workload = build(spec, seed, base_dir=path.parent)
    limit = re.search(r"max_model_len: (\d+)", text)
    assert limit is not None
    assert int((workload.prompt_len + workload.output_len).max()) <= int(limit.group(1))


def test_examples_of_the_docs_are_valid_and_complete(tmp_path: Path) -> None:
    from workloads.spec import KINDS

    text = (ROOT / "docs" / "workloads.md").read_text()
    shown = []
    for k, example in enumerate(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)):
        path = tmp_path / f"{k}.yaml"
        path.write_text(example)
        shown.append(load_section(path)[0].kind)
    assert shown == list(KINDS)
