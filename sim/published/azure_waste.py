"""Waste in the last block at completion, Azure LLM inference trace 2023 (conversation), by block size.

Definition of the published figures: slots wasted / slots allocated, summed over the requests at their end,
where every token, prompt and output, fills a slot. A request that stops by its length limit never computes
its last token, whose slot stays empty; one that stops by an end token under async scheduling does, because
the next step was scheduled before the token was known. The second kind of run has the published definition.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim.published.data import config_path, trace_path
from sim.published.registry import Options
from sim.published.table import Row, Table

TRACE = "azure_llm_2023_conv.csv"
CONFIG = "azure_waste.yaml"

#: block size in tokens -> published waste in per cent of the allocated slots
PUBLISHED = {8: ".26", 16: ".54", 32: "1.12", 64: "2.21", 128: "4.38", 256: "8.02"}


def waste_percent(block_size: int, trace: str | None = None, *, end_token: bool = True) -> float:
    """Per cent of the slots allocated at completion that hold no token, over all requests of one simulation.

    ``end_token``: requests stop by an end token (see the module), else by their length limit.

    Raises:
        InputError: the trace or the config is missing or broken.
    """
    from sim.core.codes import S_FINISHED
    from sim.runner import check
    from sim.simulate import LogOptions, Simulation

    overrides = [f"workload.path={trace_path(TRACE, trace)}", f"engine.block_size={block_size}"]
    resolved, workload = check(str(config_path(CONFIG)), overrides)
    if end_token:
        workload = replace(workload, max_tokens=workload.max_tokens + np.int32(1))
    simulation = Simulation(resolved.engine, workload, resolved.step_time, LogOptions(sample_period_ns=0))
    simulation.run()
    requests = simulation.result().requests
    done = requests["status"] == S_FINISHED
    if int(done.sum()) != len(workload):
        raise AssertionError(f"{len(workload) - int(done.sum())} requests did not finish")
    return 100.0 * float(requests["wasted_slots"].sum()) / float(requests["allocated_slots"].sum())


def make(options: Options) -> Table:
    """The published table with ours beside it.

    Raises:
        InputError: the trace or the config is missing or broken.
    """
    rows = []
    for block_size, published in PUBLISHED.items():
        by_length = waste_percent(block_size, options.trace, end_token=False)
        ours = waste_percent(block_size, options.trace)
        rows.append(Row(str(block_size), published, ours, (f"{by_length:.3f}",)))
    return Table(
        name="azure-waste",
        title="Azure conversation trace 2023, last block at completion: wasted / allocated slots, per cent",
        columns=("block size", "published", "ours", "stopped by length"),
        rows=tuple(rows),
        met_when="within one unit of the last printed digit",
        notes=(
            "Ours: requests stop by an end token under async scheduling, so the last token has a slot"
            " too, as in the published figures. Stopped by length: vLLM never computes the last token"
            " then, and its slot stays empty."
        ),
    )
