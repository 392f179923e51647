"""The live recorder on a real vLLM 0.32.0: what it writes equals what the other recorders and the simulator
write.

`make validate` runs this in the environment that has vLLM.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomllib

pytest.importorskip("vllm", reason="no vLLM in this environment: `make validate` runs these tests")

from validation import steplog
from validation.corpus import read_cases
from validation.diff import compare
from validation.fuzz_cases import Case, random_case
from validation.live.export import engine_settings, workload, write_workload
from validation.live.hooks import LiveRecorder, record_scheduler
from validation.live.options import FULL, LiveOptions, parse_options
from validation.live.reader import Recording, read, states, step_log
from validation.record import record, record_file
from validation.steplog import Columns
from validation.vllm_scheduler import SchedulerLoop
from validation.vllm_setup import require_vllm

# torch and vLLM warn about themselves while they are imported
pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).resolve().parents[2]
WITH_TOKENS = parse_options("full,tokens=on")


class RecordedLoop(SchedulerLoop):
    """The scheduler without a model, with a live recorder beneath the validation's own."""

    def __init__(self, case: Case, path: Path, options: LiveOptions) -> None:
        super().__init__(case.settings, case.requests)
        live = record_scheduler(self.scheduler, path, options)
        assert live is not None
        self.live: LiveRecorder = live


def record_live(case: Case, path: Path, options: LiveOptions) -> tuple[Columns, Recording]:
    """The validation's log of a case and the live recording of the same run."""
    require_vllm()
    loop = RecordedLoop(case, path, options)
    log = loop.run().log
    loop.live.close()
    return log, read(loop.live.writer.final)


def without_gaps(log: Columns) -> Columns:
    """The log with its steps renumbered as a live recorder counts them: idle steps have no number."""
    numbers: dict[int, int] = {}
    for step in log["step"]:
        numbers.setdefault(step, len(numbers))
    return log | {name: [numbers[s] for s in log[name]] for name in ("step", "batch_step")}


CONFORMANCE = ROOT.parent / "shared" / "conformance"
NAMES = [
    "tight_preempt",
    "async_tight",
    "priority_tight",
    "chat_multiturn",
    "hybrid_full_swa",
    "mamba_hybrid_align",
]


def short_case(name: str) -> Case:
    """The first requests of a case of the conformance set."""
    found = [c.case for c in read_cases(CONFORMANCE / name)]
    return Case(name, found[0].settings, found[0].requests[:24])


@pytest.mark.skipif(not CONFORMANCE.is_dir(), reason="no conformance recordings beside this checkout")
@pytest.mark.parametrize("name", NAMES)
def test_full_rate_equals_the_schedulers_log(name: str, tmp_path: Path) -> None:
    log, live = record_live(short_case(name), tmp_path / "live", FULL)
    assert live.complete
    comparison = compare(without_gaps(log), step_log(live))
    assert comparison.equal, comparison.summary()
    assert len(comparison.columns) == 34
    assert comparison.rows_a > 100


@pytest.mark.parametrize("seed", range(40, 52))
def test_the_exported_run_is_what_the_simulator_does(seed: int, tmp_path: Path) -> None:
    """Record, export workload and configuration, simulate, compare: nothing but the recording is needed."""
    case = random_case(seed)
    log, live = record_live(case, tmp_path / "live", WITH_TOKENS)
    recorded = step_log(live)
    comparison = compare(without_gaps(log), recorded)
    assert comparison.equal, comparison.summary()
    if case.settings.idle_steps == "run":
        return
    engine, requests = tmp_path / "config.json", tmp_path / "workload.jsonl.gz"
    assert write_workload(live, engine, requests) == len(case.requests)
    simulated = record_file("sim", engine, requests)
    comparison = compare(recorded, simulated.log)
    assert comparison.equal, comparison.summary()


def test_settings_are_read_from_the_running_scheduler(tmp_path: Path) -> None:
    case = random_case(43)
    _, live = record_live(case, tmp_path / "live", WITH_TOKENS)
    requests, arrival_time = workload(live)
    found = engine_settings(live, arrival_time)
    simulated = record("sim", found, requests)
    assert simulated.stuck is None
    assert found.num_gpu_blocks == case.settings.num_gpu_blocks
    assert found.async_scheduling == case.settings.async_scheduling
    assert found.block_size == case.settings.block_size


@pytest.mark.parametrize("broken", ["state", "put", "note"])
def test_an_exception_in_the_recorder_does_not_reach_the_scheduler(
    broken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = random_case(41)
    require_vllm()
    expected = record("scheduler", case.settings, case.requests).log
    loop = RecordedLoop(case, tmp_path / "live", FULL)
    live = loop.live

    def bad(*_: Any, **__: Any) -> Any:
        raise RuntimeError("injected")

    if broken == "state":
        live._read_state = bad
    elif broken == "put":
        live.writer.put = bad
    else:
        live._preempted = None
    logging.getLogger("vllm").propagate = True
    with caplog.at_level(logging.ERROR, logger="vllm.kvpool_live"):
        log = loop.run().log
    assert compare(expected, log).equal
    assert live.failure is not None
    assert len([r for r in caplog.records if r.name == "vllm.kvpool_live"]) == 1
    # vLLM's own methods are back, under the validation's recorder
    assert "get_new_blocks" not in vars(loop.scheduler.kv_cache_manager.block_pool)
    found = read(live.writer.final)
    if broken != "put":
        assert "injected" in found.errors[0] or "NoneType" in found.errors[0]


def test_default_sampling_takes_few_rows_and_few_states(tmp_path: Path) -> None:
    case = short_case("tight_preempt") if CONFORMANCE.is_dir() else random_case(44)
    log, live = record_live(case, tmp_path / "live", LiveOptions())
    calls = steplog.num_rows(log)
    assert live.end is not None
    assert live.end["calls"] == calls
    assert 0 < len(live.rows) <= calls / 32 + 2
    assert 1 <= sum(1 for _ in states(live)) <= len(live.rows)
    # preemptions and ends between two rows are not forgotten
    seen = [r for row in live.rows for r in row["preempted"]]
    last = live.rows[-1]["call"]
    assert seen == [r for ids in log["preempted"][:last] for r in ids]
    with pytest.raises(Exception, match="only samples"):
        step_log(live)


ENGINE_SCRIPT = """
import json, sys
from pathlib import Path
from vllm import LLM, SamplingParams
from validation.vllm_setup import tiny_llama_config
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "config.json").write_text(json.dumps(tiny_llama_config(512)))
    llm = LLM(
        model=str(folder), load_format="dummy", skip_tokenizer_init=True, enforce_eager=True, dtype="float32",
        block_size=32, num_gpu_blocks_override=24, max_model_len=512, max_num_seqs=16,
        disable_log_stats=False,
    )
    prompts = [{"prompt_token_ids": [(7 * i + j) % 4096 for j in range(40 + 9 * i)]} for i in range(12)]
    llm.generate(prompts, SamplingParams(max_tokens=60, ignore_eos=True, temperature=0), use_tqdm=False)
    # at the end of the process vLLM would kill its core after 5 s, which a busy machine may need longer for
    llm.llm_engine.engine_core.shutdown(timeout=300)
"""


def entry_point_folder(folder: Path) -> Path:
    """A folder on sys.path that offers the entry points of pyproject.toml, as an installed package does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    info.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_a_whole_engine_loads_the_plugin_in_its_core_process(tmp_path: Path) -> None:
    """vLLM finds the entry point, and the engine core, a process of its own, writes the file."""
    model = tmp_path / "model"
    model.mkdir()
    script = tmp_path / "serve.py"
    script.write_text(ENGINE_SCRIPT)
    environment = os.environ | {
        "PYTHONPATH": f"{entry_point_folder(tmp_path / 'installed')}{os.pathsep}{ROOT}",
        "KVPOOL_LIVE_RECORD": str(tmp_path / "live.jsonl.gz"),
        "KVPOOL_LIVE_OPTIONS": "full,tokens=on",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_PLUGINS": "kvpool_live",
        "CUDA_VISIBLE_DEVICES": "",
    }
    run = subprocess.run(
        [sys.executable, str(script), str(model)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    names = sorted(p.name for p in tmp_path.iterdir())
    assert "live.jsonl.gz" in names, f"{names}\n{run.stderr[-3000:]}"
    live = read(tmp_path / "live.jsonl.gz")
    assert live.complete
    assert live.header["pid"] != os.getpid()
    recorded = step_log(live)
    assert sum(map(len, recorded["finished"])) == 12
    assert any(recorded["preempted"])
    requests, arrival_time = workload(live)
    simulated = record("sim", engine_settings(live, arrival_time), requests)
    comparison = compare(recorded, simulated.log)
    assert comparison.equal, comparison.summary()
