"""The command line as a user meets it: every bad input of a kind, exit codes, what is on disk afterwards."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sim import cli, results
from tests.shell import fakes

ROOT = Path(__file__).resolve().parents[2]
GOOD = """\
name: small
engine: {num_gpu_blocks: 64, max_model_len: 512, max_num_seqs: 8, max_num_batched_tokens: 256}
step_time: {kind: constant, step: 10ms}
workload: {kind: batch, num_requests: 12, prompt_len: 40, output_len: 9}
"""
TRACE = """\
engine: {num_gpu_blocks: 64, max_model_len: 512, max_num_seqs: 8, max_num_batched_tokens: 256}
step_time: {kind: constant, step: 10ms}
workload: {kind: trace, path: t.jsonl, format: FORMAT}
"""
HELP = ([], ["run"], ["validate"], ["schema"], ["docs"], ["docs", "config"])


class FakeSimulation:
    """Stands in for the engine where the shell alone is tested."""

    interrupt = False

    def __init__(self, *_: Any) -> None:
        self.done = 0

    def run(self, _until: int | None, progress: Callable[[Any], None]) -> None:
        for finished in (0, 150, 300):
            progress(types.SimpleNamespace(now_ns=10**9, finished=finished, total=300, steps=9, wall_s=0.1))
            if self.interrupt and finished:
                raise KeyboardInterrupt

    def result(self) -> Any:
        return fakes.run_result()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test, with small.yaml in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(GOOD)
    return tmp_path


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeSimulation]:
    module = types.ModuleType("sim.simulate")
    module.Simulation = FakeSimulation  # type: ignore[attr-defined]
    module.LogOptions = types.SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sim.simulate", module)
    monkeypatch.setattr(FakeSimulation, "interrupt", False)
    return FakeSimulation


def kvpool(*args: str) -> Result:
    return CliRunner().invoke(cli.main, list(args))


def tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def refused(result: Result, work: Path, *texts: str, inputs: tuple[str, ...] = ("small.yaml",)) -> str:
    """The run was refused with exit code 2, said so once on stderr, and left nothing on disk."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    said = [line for line in result.stderr.splitlines() if not line.startswith("  hint:")]
    for text in texts:
        assert sum(text in line for line in said) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert set(tree(work)) <= set(inputs)
    return result.stderr


# -- bad configs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name:", "nmae:", "bad.yaml:1:1: unknown key 'nmae'"),
        ("num_requests: 12", "num_requests: many", "bad.yaml:4:39: 'workload.num_requests' must be a whole"),
        (
            "max_num_batched_tokens: 256",
            "max_num_batched_tokens: 4",
            "bad.yaml:2:91: max_num_batched_tokens (4)",
        ),
        (
            "num_gpu_blocks: 64",
            "num_gpu_blocks: 32",
            "bad.yaml:2:26: a pool of 32 blocks is smaller than one",
        ),
        ("step: 10ms", "step: 10m", "bad.yaml:3:35: 'step_time.step' must be seconds"),
        ("name: small", "name: small\nname: big", "bad.yaml:2:1: the key 'name' is given twice"),
        ("kind: batch", "kind: bacth", "bad.yaml:4:18: 'workload.kind' must be one of chat"),
    ],
)
def test_bad_configs(work: Path, old: str, new: str, message: str) -> None:
    (work / "bad.yaml").write_text(GOOD.replace(old, new))
    refused(kvpool("run", "bad.yaml"), work, message, inputs=("small.yaml", "bad.yaml"))
    refused(kvpool("validate", "bad.yaml"), work, message, inputs=("small.yaml", "bad.yaml"))


def test_missing_config(work: Path) -> None:
    assert "did you mean 'small.yaml'?" in refused(
        kvpool("run", "smal.yaml"), work, "smal.yaml: no such config"
    )


def test_bad_overrides_and_options(work: Path) -> None:
    said = refused(
        kvpool("run", "small.yaml", "--set", "engine.blok_size=3"), work, "--set engine.blok_size:"
    )
    assert "did you mean 'block_size'?" in said
    refused(kvpool("run", "small.yaml", "--set", "engine.block_size"), work, "--set: expected KEY=VALUE")
    assert kvpool("run", "small.yaml", "--seed", "x").exit_code == 2
    assert kvpool("run", "small.yaml", "--unknown").exit_code == 2
    assert tree(work) == ["small.yaml"]


# -- bad traces ------------------------------------------------------------------------------------------

LOGICAL = (
    '{"request_id": "a", "arrival_step": 0, "prompt_token_ids": [1, 2, 3], "output_token_ids": [4]}\n'
    '{"request_id": "b", "arrival_step": 1, "prompt_token_ids": [1, 2], "output_token_ids": [4, 5]}\n'
)
MOONCAKE = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}\n'


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("logical", LOGICAL + '{"request_id": "c", \n', "t.jsonl:3:"),
        ("logical", LOGICAL + LOGICAL.splitlines()[0], "t.jsonl:3"),
        ("logical", LOGICAL.replace("[1, 2, 3]", "[]"), "t.jsonl:1"),
        ("logical", LOGICAL.replace('"arrival_step": 1', '"arrival_step": "x"'), "t.jsonl:2"),
        ("logical", "", "t.jsonl"),
        ("mooncake", MOONCAKE * 2 + "garbage\n", "t.jsonl:3:"),
        ("mooncake", MOONCAKE.replace("600", '"many"'), "t.jsonl:1"),
        ("mooncake", "", "t.jsonl"),
        ("mooncake", None, "t.jsonl"),
    ],
    ids=[
        "cut off line",
        "duplicate id",
        "empty prompt",
        "wrong type",
        "empty file",
        "broken line",
        "wrong type in mooncake",
        "empty mooncake",
        "missing file",
    ],
)
def test_bad_traces(work: Path, form: str, text: str | None, message: str) -> None:
    (work / "trace.yaml").write_text(TRACE.replace("FORMAT", form))
    if text is not None:
        (work / "t.jsonl").write_text(text)
    refused(kvpool("run", "trace.yaml"), work, message, inputs=("small.yaml", "trace.yaml", "t.jsonl"))


# -- output ----------------------------------------------------------------------------------------------


def test_a_run_folder(work: Path, fake_engine: type[FakeSimulation]) -> None:
    result = kvpool("run", "small.yaml", "--out", "out", "--events")
    assert result.exit_code == 0, result.output
    assert tree(work / "out") == [
        "config.yaml",
        "plots/latency.png",
        "plots/latency.svg",
        "plots/overview.png",
        "plots/overview.svg",
        "provenance.json",
        "requests.parquet",
        "steps.parquet",
        "summary.json",
    ]
    assert result.stdout.startswith("small: finished after")
    assert "results in out" in result.stderr
    record = json.loads((work / "out" / "provenance.json").read_text())
    assert record["pool"]["how"] == "given"
    assert {"core_digest", "versions", "command", "wall_s", "workload", "vllm_profile"} <= set(record)


def test_default_folder_and_replacement(work: Path, fake_engine: type[FakeSimulation]) -> None:
    for _ in range(2):
        assert kvpool("run", "small.yaml", "--no-plots").exit_code == 0
    (folder,) = (work / "runs").iterdir()
    assert folder.name.startswith("small-")
    assert len(folder.name) == len("small-") + 8
    assert kvpool("run", "small.yaml", "--no-plots", "--seed", "5").exit_code == 0
    assert len(list((work / "runs").iterdir())) == 2


def test_json_and_quiet(work: Path, fake_engine: type[FakeSimulation]) -> None:
    result = kvpool("run", "small.yaml", "--out", "out", "--json", "--no-plots")
    assert json.loads(result.stdout) == json.loads((work / "out" / "summary.json").read_text())
    result = kvpool("run", "small.yaml", "--out", "out", "--quiet", "--no-plots")
    assert (result.stdout, result.stderr, result.exit_code) == ("", "", 0)


def test_refuses_to_overwrite_before_it_runs(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "mine").mkdir()
    (work / "mine" / "thesis.txt").write_text("years of work")
    monkeypatch.setitem(sys.modules, "sim.simulate", None)  # importing the engine would fail
    inputs = ("small.yaml", "mine/thesis.txt")
    said = "mine: the folder holds files"
    refused(kvpool("run", "small.yaml", "--out", "mine"), work, said, inputs=inputs)
    assert (work / "mine" / "thesis.txt").read_text() == "years of work"
    refused(
        kvpool("run", "small.yaml", "--out", "small.yaml"), work, "small.yaml: this is a file", inputs=inputs
    )


def test_full_disk(work: Path, fake_engine: type[FakeSimulation], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(results, "write_bytes", full)
    result = kvpool("run", "small.yaml", "--out", "deep/out", "--no-plots")
    assert result.exit_code == 2
    assert result.stdout.startswith("small: finished after")
    message = "deep/out: the results can't be written: No space left on device"
    assert sum(message in line for line in result.stderr.splitlines()) == 1
    assert tree(work) == ["small.yaml"]
    assert not (work / "deep").exists()


def test_interrupted_run_is_kept(work: Path, fake_engine: type[FakeSimulation]) -> None:
    fake_engine.interrupt = True
    result = kvpool("run", "small.yaml", "--out", "out", "--no-plots")
    assert result.exit_code == 130
    assert "interrupted: keeping what is done" in result.stderr
    assert "INTERRUPTED" in result.stdout
    assert json.loads((work / "out" / "summary.json").read_text())["exit_reason"] == "interrupted"


def test_validate_says_what_would_run(work: Path) -> None:
    (work / "bad.yaml").write_text("nmae: x\n" + GOOD)
    result = kvpool("validate", "small.yaml", "bad.yaml", "--set", "workload.num_requests=7")
    assert result.exit_code == 2
    assert "small.yaml: fine" in result.stdout
    assert "7 requests" in result.stdout
    assert "bad.yaml:1:1: unknown key 'nmae'" in result.stderr


# -- processes -------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\nfrom sim.cli import main\n"
        f"for args in {HELP!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        "        main([*args, '--help'])\n"
        "    assert 'Usage' in out.getvalue()\n"
        "heavy = {'numba', 'matplotlib', 'pyarrow', 'simpy', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def _limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def test_a_disk_that_refuses_large_files(work: Path) -> None:
    """The operating system itself refuses, in the middle of a file: no partial file is left."""
    code = (
        "import sys, pathlib\nfrom sim.results import write_run\nfrom sim.errors import InputError\n"
        "try:\n    write_run(pathlib.Path('out'), {'a': b'x' * 100, 'b': b'x' * 5000}, {})\n"
        "except InputError as e:\n    print(e); sys.exit(2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=_limit_file_size,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("out: the results can't be written: File too large")
    assert tree(work) == ["small.yaml"]


def test_a_disk_that_is_really_full(work: Path) -> None:
    """On a file system of 64 KiB, in a mount namespace of its own, so that nothing else sees it."""
    (work / "disk").mkdir()
    shell = "mount -t tmpfs -o size=64k tmpfs disk && exec "
    probe = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell + "true"], cwd=work, capture_output=True, check=False
    )
    if probe.returncode != 0:
        pytest.skip("mounting a small file system needs root and mount namespaces")
    code = (
        "import sys, pathlib, os\nfrom sim.results import write_run\nfrom sim.errors import InputError\n"
        "try:\n    write_run(pathlib.Path('disk/runs/a'), {'a': b'x' * 30000, 'b': os.urandom(90000)}, {})\n"
        "except InputError as e:\n    print(e); print(os.listdir('disk')); sys.exit(2)\n"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{shell} "$0" -c "$1"', sys.executable, code],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first == "disk/runs/a: the results can't be written: No space left on device"
    assert last == "[]"


@pytest.mark.parametrize("command", [["schema"], ["docs", "config"]])
def test_printed_documents(command: list[str]) -> None:
    result = kvpool(*command)
    assert result.exit_code == 0
    assert "max_num_batched_tokens" in result.stdout


# -- with the real engine ------------------------------------------------------------------------------


@pytest.fixture
def real(work: Path) -> Path:
    (work / "real.yaml").write_text("""\
name: real
engine: {num_gpu_blocks: 48, max_model_len: 700, max_num_seqs: 16, max_num_batched_tokens: 256}
step_time: {kind: affine, overhead: 2ms, prefill_token: 20us, decode_sequence: 50us, context_token: 2.5ns}
workload:
  kind: chat
  arrivals: {kind: poisson, rate: 4}
  num_sessions: 40
  user_len: {kind: lognormal, mean: 60, cv: 1, max: 200}
  output_len: {kind: lognormal, mean: 40, cv: 1, max: 90}
  system_len: 40
  think_time: 500ms
  max_context: 650
output: {events: true}
""")
    return work


SAME = ("config.yaml", "summary.json", "steps.parquet", "requests.parquet", "events.parquet")


def test_the_resolved_config_runs_to_the_same_bytes(real: Path) -> None:
    """Same config and seed, same bytes; also from the config of the run folder, in another process."""
    assert kvpool("run", "real.yaml", "--out", "a").exit_code == 0
    done = subprocess.run(
        [sys.executable, "-m", "sim", "run", "a/config.yaml", "--out", "b", "-q"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
        cwd=real,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    names = [*SAME, "plots/overview.svg", "plots/overview.png", "plots/latency.svg"]
    for name in names:
        assert (real / "a" / name).read_bytes() == (real / "b" / name).read_bytes(), name
    assert kvpool("run", "real.yaml", "--out", "c", "--no-plots", "--seed", "1").exit_code == 0
    assert (real / "a" / "requests.parquet").read_bytes() != (real / "c" / "requests.parquet").read_bytes()


def test_files_beside_the_config_and_estimates_survive_resolving(work: Path) -> None:
    """Paths are found again from the working folder; the estimated pool becomes its number."""
    (work / "sub" / "tiny").mkdir(parents=True)
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 1000}
    (work / "sub" / "tiny" / "config.json").write_text(json.dumps({**shape, "num_attention_heads": 4}))
    (work / "sub" / "steps.csv").write_text(
        "scheduled_tokens,context_tokens,duration_ms\n1,10,5\n50,40,9\n400,60,20\n"
    )
    (work / "sub" / "t.jsonl").write_text(LOGICAL)
    (work / "sub" / "c.yaml").write_text(
        "model: tiny/config.json\ngpu: l40s\nstep_time: {kind: table, path: steps.csv}\n"
        "engine: {max_model_len: 2048, gpu_memory_utilization: 0.1}\n"
        "workload: {kind: trace, path: t.jsonl, format: logical}\n"
    )
    first = kvpool("run", "sub/c.yaml", "--out", "a", "--no-plots")
    assert first.exit_code == 0, first.output
    assert "estimated" in first.stdout
    resolved = (work / "a" / "config.yaml").read_text()
    for path in ("sub/tiny/config.json", "sub/steps.csv", "sub/t.jsonl"):
        assert path in resolved
    assert kvpool("run", "a/config.yaml", "--out", "b", "--no-plots").exit_code == 0
    for name in SAME[:-1]:
        assert (work / "a" / name).read_bytes() == (work / "b" / name).read_bytes(), name


def test_until_and_every_step(real: Path) -> None:
    import pyarrow.parquet as pq

    args = ["run", "real.yaml", "--no-plots", "--every-step", "--out", "a", "--json", "--set", "run.until=3s"]
    result = kvpool(*args)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["exit_reason"] == "until"
    assert summary["simulated_s"] == pytest.approx(3, abs=0.1)
    assert summary["requests"]["unfinished"] >= 0
    steps = pq.read_table(real / "a" / "steps.parquet")
    assert steps.num_rows >= summary["steps"]
    assert steps.schema.field("used_blocks").metadata[b"unit"] == b"blocks"


def test_a_prompt_that_is_too_long_is_reported(work: Path) -> None:
    """A prompt longer than max_model_len is named in the results, and the others are served."""
    lines = [
        {"request_id": "ok", "arrival_step": 0, "prompt_token_ids": [1] * 9, "output_token_ids": [1, 2]},
        {"request_id": "long", "arrival_step": 0, "prompt_token_ids": [2] * 70, "output_token_ids": [1]},
        {"request_id": "late", "arrival_step": 3, "prompt_token_ids": [3] * 9, "output_token_ids": [1]},
    ]
    (work / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (work / "t.yaml").write_text(
        "engine: {num_gpu_blocks: 8, max_model_len: 64, max_num_seqs: 4, max_num_batched_tokens: 64}\n"
        "step_time: {kind: constant, step: 10ms}\n"
        "workload: {kind: trace, path: t.jsonl, format: logical}\n"
    )
    result = kvpool("run", "t.yaml", "--out", "a", "--no-plots")
    assert result.exit_code == 0, result.output
    assert "! rejected" in result.stdout
    summary = json.loads((work / "a" / "summary.json").read_text())
    assert summary["requests"]["finished"] == 2
    assert summary["rejected"] == [{"index": 1, "prompt_tokens": 70}]


@pytest.mark.parametrize("terminal", [False, True])
def test_ctrl_c_keeps_what_is_done(real: Path, terminal: bool) -> None:
    """A run is interrupted once it has told its progress: results are written, exit code 130."""
    long = ["--set", "workload.num_sessions=150000", "--set", "workload.arrivals.rate=3", "--no-plots"]
    master, slave = pty.openpty()
    # tests that a script has started in the background inherit that the signal is ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "sim", "run", "real.yaml", "--out", "a", *long],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"},
        cwd=real,
        stdout=subprocess.PIPE,
        stderr=slave if terminal else subprocess.PIPE,
    )
    signal.signal(signal.SIGINT, before)
    os.close(slave)
    assert process.stdout is not None
    talk = master if terminal or process.stderr is None else process.stderr.fileno()
    said = b""
    while b"steps/s" not in said:
        chunk = os.read(talk, 65536)
        assert chunk, said
        said += chunk
    process.send_signal(signal.SIGINT)
    # A terminal that nobody reads from any more answers with an error, not with an end of file.
    with contextlib.suppress(OSError):
        while chunk := os.read(talk, 65536):
            said += chunk
    out = process.stdout.read()
    assert process.wait(timeout=60) == 130, said
    process.stdout.close()
    if process.stderr is not None:
        process.stderr.close()
    os.close(master)
    assert b"interrupted: keeping what is done" in said
    assert b"INTERRUPTED" in out
    summary = json.loads((real / "a" / "summary.json").read_text())
    assert summary["exit_reason"] == "interrupted"
    assert 0 < summary["requests"]["finished"] < summary["requests"]["total"]


@pytest.mark.parametrize(
    "command",
    [
        ["run", "configs/chat.yaml", "--out"],
        ["report"],
        ["layout"],
        ["descriptors"],
        ["export", "--format", "csv"],
        ["size", "--model", "llama-3.1-8b", "--gpu", "h100", "--png"],
        ["sweep", "configs/block_size.yaml", "--out"],
    ],
)
def test_a_path_that_can_not_be_is_told_in_one_line(command: list[str]) -> None:
    done = CliRunner().invoke(cli.main, [*command, "a" * 300])
    assert done.exit_code == 2
    assert "a" * 300 in done.stderr
    assert "ile name too long" in done.stderr
    assert "Traceback" not in done.stderr
