"""The control workload on a real vLLM's scheduler, with no model; run by a Python that has vLLM 0.32.0.

The loop is that of EngineCore.step: schedule, then update with the tokens that are known beforehand. Timed:
making the Request objects (which hashes their blocks) and the loop; not timed: imports, set-up and
token lists.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.benchmarks.cases import CONTROL_ENGINE, Clock, control_lines, control_workload
from validation.vllm_scheduler import make_scheduler
from validation.vllm_setup import require_vllm


def serve(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Serve the requests to their end; returns CPU and wall seconds, steps and request-steps."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

    scheduler, hasher = make_scheduler(CONTROL_ENGINE)
    outputs = {line["request_id"]: line["output_token_ids"] for line in lines}
    given = dict.fromkeys(outputs, 0)
    steps = request_steps = 0
    clock = Clock()
    for index, line in enumerate(lines):
        scheduler.add_request(
            Request(
                request_id=line["request_id"],
                prompt_token_ids=line["prompt_token_ids"],
                sampling_params=SamplingParams(max_tokens=len(line["output_token_ids"]), ignore_eos=True),
                pooling_params=None,
                arrival_time=float(index),
                block_hasher=hasher,
            )
        )
    while scheduler.has_unfinished_requests():
        batch = scheduler.schedule()
        ids = list(batch.num_scheduled_tokens)
        live = scheduler.requests
        sampled = []
        for r in ids:
            if live[r].is_prefill_chunk:
                sampled.append([])
            else:
                sampled.append([outputs[r][given[r]]])
                given[r] += 1
        scheduler.update_from_output(
            batch,
            ModelRunnerOutput(
                req_ids=ids, req_id_to_index={r: i for i, r in enumerate(ids)}, sampled_token_ids=sampled
            ),
        )
        steps += 1
        request_steps += len(ids)
    cpu, wall = clock.read()
    return {"cpu_s": cpu, "wall_s": wall, "steps": steps, "request_steps": request_steps}


def main() -> None:
    """``python -m tests.benchmarks.vllm_worker REQUESTS``: a line of JSON for each line read from stdin.

    The worker stays alive, so that its runs alternate with the others' without importing vLLM again.
    """
    require_vllm()
    lines = control_lines(control_workload(int(sys.argv[1])))
    serve(lines[:20])
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(serve(lines)), flush=True)


if __name__ == "__main__":
    main()
