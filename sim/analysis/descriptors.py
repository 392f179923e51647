"""How many transfer descriptors a request's KV needs when it is sent elsewhere, and what they cost.

A connector registers regions of memory (the K and the V of each layer, or each layer in one piece) and posts
one descriptor for each piece of contiguous memory. Blocks whose ids are consecutive, in table order, lie side
by side in every region and can go into one descriptor:

    descriptors = regions * runs of consecutive ids in the table
    mergeable   = adjacent pairs of ids (b, b + 1) / adjacent pairs

Both sides of a transfer must be contiguous for a merge; only the sender's side is known here, so the count is
the least that the sender's pool allows.

    posting  = descriptors * post_s
    transfer = latency_s + descriptors * wire_s + bytes / bandwidth

The defaults of `post_s` and `wire_s` are fitted to two transfers told of in vLLM PR #55841 (23,252
descriptors: 79.6 ms to post, 117 ms until done; about 9,600 descriptors: 32 ms and 53 ms). If the second time
includes the first, a descriptor takes 3.4 us to post and 1.3 us more until it has gone. That is one machine
and two points; give your own numbers where you have them. The bandwidth is that of a 400 Gb/s link, the
latency a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.report.units import count, plural, seconds, share, size

if TYPE_CHECKING:
    from sim.analysis.handoffs import Handoffs
    from sim.resolve import Resolved

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

QUANTILES = (50, 90, 99)
WORST = 5

DEFINITIONS = {
    "mergeable": "adjacent pairs of ids (b, b + 1) in the tables of the requests sent / all adjacent pairs",
    "descending": "adjacent pairs (b, b - 1) / all of them: side by side in memory, in the wrong order",
    "descriptors": "regions * runs of consecutive ids in the table, on each GPU",
    "descriptors_unmerged": "regions * blocks",
    "posting_s": "descriptors * post_s",
    "transfer_s": "latency_s + descriptors * wire_s + bytes / bandwidth",
    "total_s": "posting_s + transfer_s",
}


@dataclass(frozen=True)
class CostModel:
    """What sending costs on each GPU.

    Attributes:
        regions: registered regions, each holding a part of every block.
        region_bytes: bytes of one block in one region; None if the model is unknown.
        post_s: seconds of a processor to post one descriptor.
        wire_s: further seconds that one descriptor takes, whatever its length.
        bandwidth: bytes a second.
        latency_s: seconds of one transfer without any data.
    """

    regions: int
    region_bytes: float | None
    post_s: float = 3.4e-6
    wire_s: float = 1.3e-6
    bandwidth: float = 50e9
    latency_s: float = 20e-6

    def posting(self, descriptors: I64) -> F64:
        """float64[k], seconds to post."""
        return np.asarray(descriptors * self.post_s, dtype=np.float64)

    def transfer(self, descriptors: I64, blocks: I64) -> F64 | None:
        """float64[k], seconds until all has gone, posting left out; None without the size of a block."""
        if self.region_bytes is None:
            return None
        sent = blocks * (self.regions * self.region_bytes)
        out: F64 = self.latency_s + descriptors * self.wire_s + sent / self.bandwidth
        return out


def cost_model(resolved: Resolved, regions: str = "kv", **numbers: float) -> CostModel:
    """The cost model of a config.

    Args:
        resolved: gives layers and the size of a block, if it names a model.
        regions: "kv" (K and V of each layer apart), "layer" (one for each layer), "packed" (one for all
            layers) or a number.
        numbers: `post_s`, `wire_s`, `bandwidth`, `latency_s`.

    Raises:
        InputError: neither a name nor a number, or a name without a model.
    """
    per_layer = {"kv": 2, "layer": 1}
    if regions.isdigit() and int(regions) > 0:
        n = int(regions)
    elif regions == "packed":
        n = 1
    elif regions not in per_layer:
        raise InputError(f"expected kv, layer, packed or a number, got '{regions}'", "--regions")
    elif resolved.model is None:
        hint = "as in --regions 64 (32 layers, K and V apart), or name the model in the config"
        raise InputError("the number of layers is unknown: the config names no model", "--regions", hint=hint)
    else:
        n = per_layer[regions] * resolved.model.layers
    page = resolved.pool.page_bytes
    return CostModel(n, None if page is None else page / n, **numbers)


def descriptor_costs(handoffs: Handoffs, model: CostModel) -> dict[str, Any]:
    """Descriptors, the mergeable share and times: over requests, in all, and the requests with most.

    Returns plain data for JSON; distributions have mean, p50, p90, p99 and max.
    """
    h = handoffs
    merged, unmerged = h.runs * model.regions, h.blocks * model.regions
    pairs, many = int(h.pairs.sum()), h.pairs > 0
    columns: dict[str, NDArray[Any] | None] = {
        "blocks": h.blocks,
        "runs": h.runs,
        "mergeable": h.ascending[many] / h.pairs[many],
        "descriptors": merged,
        "descriptors_unmerged": unmerged,
        "posting_s": model.posting(merged),
        "transfer_s": model.transfer(merged, h.blocks),
        "posting_unmerged_s": model.posting(unmerged),
        "transfer_unmerged_s": model.transfer(unmerged, h.blocks),
    }
    transfer = columns["transfer_s"]
    if transfer is not None:
        columns["total_s"] = model.posting(merged) + transfer
    order = np.lexsort((h.request, -merged))[:WORST]
    sums = ("blocks", "runs", "descriptors", "descriptors_unmerged", "posting_s", "transfer_s", "total_s")
    return {
        "when": h.when,
        "requests": len(h.request),
        "without_table": h.missed,
        "adjacent_pairs": pairs,
        "mergeable": int(h.ascending.sum()) / pairs if pairs else None,
        "descending": int(h.descending.sum()) / pairs if pairs else None,
        "cost_model": asdict(model),
        "bytes": None
        if model.region_bytes is None
        else int(h.blocks.sum() * model.regions * model.region_bytes),
        "totals": {k: v.sum().item() for k in sums if (v := columns.get(k)) is not None},
        "per_request": {k: _distribution(v) for k, v in columns.items() if v is not None},
        "most": [
            {
                "request": int(h.request[i]),
                "time_s": int(h.time_ns[i]) / 1e9,
                "blocks": int(h.blocks[i]),
                "runs": int(h.runs[i]),
                "descriptors": int(merged[i]),
            }
            for i in order
        ],
        "definitions": DEFINITIONS,
    }


def _distribution(values: NDArray[Any]) -> dict[str, float | None]:
    if len(values) == 0:
        return dict.fromkeys(("mean", *(f"p{q}" for q in QUANTILES), "max"))
    out: dict[str, float | None] = {"mean": float(values.mean())}
    out |= {f"p{q}": float(np.percentile(values, q)) for q in QUANTILES}
    return out | {"max": float(values.max())}


_ROWS = (
    ("blocks", "blocks", count),
    ("runs of consecutive ids", "runs", count),
    ("mergeable pairs", "mergeable", share),
    ("descriptors", "descriptors", count),
    ("  without merging", "descriptors_unmerged", count),
    ("posting", "posting_s", seconds),
    ("  without merging", "posting_unmerged_s", seconds),
    ("transfer", "transfer_s", seconds),
    ("  without merging", "transfer_unmerged_s", seconds),
    ("posting + transfer", "total_s", seconds),
)


def text(name: str, costs: Mapping[str, Any]) -> str:
    """The costs on one screen, the answer first."""
    m, n = costs["cost_model"], costs["requests"]
    moment = "its first token" if costs["when"] == "first-token" else "its end"
    out = [f"{name}: KV of {plural(n, 'request')} sent, each at {moment}"]
    if not n:
        return out[0] + "\n"
    totals = costs["totals"]
    out.append(
        f"  {share(costs['mergeable'])} of adjacent block pairs can be merged"
        f" ({share(costs['descending'])} are adjacent in descending order)"
    )
    sent = "" if costs["bytes"] is None else f" for {size(costs['bytes'])}"
    out.append(
        f"  {count(totals['descriptors'])} descriptors{sent} ({count(totals['descriptors_unmerged'])} without"
        f" merging), {plural(m['regions'], 'region')} x {count(totals['runs'])} runs"
    )
    if costs["without_table"]:
        out.append(
            f"  {plural(costs['without_table'], 'request')} had no table: preempted when the token came"
        )
    out += ["", f"  {'per request':<26}{'mean':>12}{'p50':>12}{'p90':>12}{'p99':>12}{'max':>12}"]
    for label, key, how in _ROWS:
        d = costs["per_request"].get(key)
        if d is not None:
            out.append(f"  {label:<26}" + "".join(f"{how(v):>12}" for v in d.values()))
    out += ["", "  most descriptors:"]
    for r in costs["most"]:
        out.append(
            f"    request {r['request']} at {seconds(r['time_s'])}: {plural(r['blocks'], 'block')} in"
            f" {plural(r['runs'], 'run')}, {plural(r['descriptors'], 'descriptor')}"
        )
    out += [
        "",
        f"  cost model: {count(m['post_s'] * 1e6)} us to post a descriptor and {count(m['wire_s'] * 1e6)} us",
    ]
    out[-1] += f" to move it, {m['bandwidth'] / 1e9:g} GB/s, {seconds(m['latency_s'])} latency; on each GPU"
    return "\n".join(out) + "\n"
