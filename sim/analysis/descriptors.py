"""How many transfer descriptors a request's KV needs when it is sent elsewhere, and what they cost.

A connector registers regions of memory (the K and the V of each layer, or each layer in one piece) and posts
one descriptor for each piece of contiguous memory. Blocks whose ids are consecutive, in table order, lie side
by side in every region and can go into one descriptor:

    descriptors = regions * runs of consecutive ids in the table
    mergeable   = adjacent pairs of ids (b, b + 1) / adjacent pairs

With several KV-cache groups a request has a table in each, and the regions of a group are those of its
layers; descriptors are summed over the groups. Both sides of a transfer must be contiguous for a merge; only
the sender's side is known here, so the count is the least that the sender's pool allows.

    posting  = descriptors * post_s
    transfer = latency_s + descriptors * wire_s + bytes / bandwidth

The defaults of `post_s` and `wire_s` are fitted to two transfers told of in vLLM PR #55841 (23,252
descriptors: 79.6 ms to post, 117 ms until done; about 9,600 descriptors: 32 ms and 53 ms). If the second time
includes the first, a descriptor takes 3.4 us to post and 1.3 us more until it has gone. That is one machine
and two points; give your own numbers where you have them. The bandwidth is that of a 400 Gb/s link, the
latency a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.report.units import count, plural, seconds, share, size

if TYPE_CHECKING:
    from sim.analysis.handoffs import Handoffs
    from sim.analysis.recorded import Recorded
    from sim.resolve import Resolved

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

QUANTILES = (50, 90, 99)
WORST = 5

DEFINITIONS = {
    "mergeable": "adjacent pairs of ids (b, b + 1) in the tables of the requests sent / all adjacent pairs",
    "descending": "adjacent pairs (b, b - 1) / all of them: side by side in memory, in the wrong order",
    "descriptors": "regions * runs of consecutive ids in the table, on each GPU; summed over KV-cache groups",
    "descriptors_unmerged": "regions * blocks, summed over KV-cache groups",
    "posting_s": "descriptors * post_s",
    "transfer_s": "latency_s + descriptors * wire_s + bytes / bandwidth",
    "total_s": "posting_s + transfer_s",
}
#: Kinds of layers whose K and V are not apart: one latent vector, or one state.
_ONE_PIECE = ("mla", "mamba")


@dataclass(frozen=True)
class CostModel:
    """What sending costs on each GPU.

    Attributes:
        regions: registered regions that a block of each KV-cache group has a part in.
        region_bytes: bytes of one block in one region, by group; None if the model is unknown.
        post_s: seconds of a processor to post one descriptor.
        wire_s: further seconds that one descriptor takes, whatever its length.
        bandwidth: bytes a second.
        latency_s: seconds of one transfer without any data.
    """

    regions: tuple[int, ...]
    region_bytes: tuple[float, ...] | None
    post_s: float = 3.4e-6
    wire_s: float = 1.3e-6
    bandwidth: float = 50e9
    latency_s: float = 20e-6

    def descriptors(self, pieces: I64) -> I64:
        """int64[k] for int64[k, G] runs or blocks."""
        return np.asarray(pieces @ np.array(self.regions, dtype=np.int64), dtype=np.int64)

    def size(self, blocks: I64) -> F64 | None:
        """float64[k], bytes of int64[k, G] blocks; None without the size of a block."""
        if self.region_bytes is None:
            return None
        return np.asarray(blocks @ (np.array(self.regions) * np.array(self.region_bytes)), dtype=np.float64)

    def posting(self, descriptors: I64) -> F64:
        """float64[k], seconds to post."""
        return np.asarray(descriptors * self.post_s, dtype=np.float64)

    def transfer(self, descriptors: I64, size: F64 | None) -> F64 | None:
        """float64[k], seconds until all has gone, posting left out; None without the size of a block."""
        if size is None:
            return None
        out: F64 = self.latency_s + descriptors * self.wire_s + size / self.bandwidth
        return out


def cost_model(source: Resolved | Recorded, regions: str = "kv", **numbers: float) -> CostModel:
    """The cost model of a config, or of a recording, which knows no layers.

    Args:
        source: gives layers and the size of a block, if it names a model.
        regions: "kv" (K and V of each layer apart; a latent vector or a state is one piece), "layer" (one for
            each layer), "packed" (one for all layers) or a number; of each KV-cache group.
        numbers: `post_s`, `wire_s`, `bandwidth`, `latency_s`.

    Raises:
        InputError: neither a name nor a number, or a name without a model.
    """
    pool = getattr(source, "pool", None)
    plan = None if pool is None else pool.plan
    groups = len(plan.groups) if plan is not None else _num_groups(source)
    if regions not in ("kv", "layer", "packed") and not (regions.isdigit() and int(regions) > 0):
        raise InputError(f"expected kv, layer, packed or a number, got '{regions}'", "--regions")
    if regions == "packed" or regions.isdigit():
        each = (1 if regions == "packed" else int(regions),) * groups
    elif plan is None or not plan.groups:
        what = "a recording does not tell of the model" if pool is None else "the config names no model"
        hint = "as in --regions 64 (32 layers, K and V apart)"
        raise InputError(
            f"the number of layers is unknown: {what}",
            "--regions",
            hint=hint if pool is None else f"{hint}, or name the model in the config",
        )
    else:
        each = tuple(
            sum(1 if regions == "layer" or m.kind in _ONE_PIECE else 2 for m in g.members)
            for g in plan.groups
        )
    if plan is None or not plan.groups:
        page = None if pool is None else pool.page_bytes
        sizes = None if page is None else tuple(page / n for n in each)
    else:
        sizes = tuple(g.block_bytes / n for g, n in zip(plan.groups, each, strict=True))
    return CostModel(each, sizes, **numbers)


def _num_groups(source: Any) -> int:
    sizes = getattr(source, "block_sizes", None)
    return len(source.engine.kv_cache_groups) if sizes is None else len(sizes)


def descriptor_costs(handoffs: Handoffs, model: CostModel) -> dict[str, Any]:
    """Descriptors, the mergeable share and times: over requests, in all, and the requests with most.

    Returns plain data for JSON; distributions have mean, p50, p90, p99 and max.
    """
    h = handoffs
    merged, unmerged = model.descriptors(h.runs), model.descriptors(h.blocks)
    size = model.size(h.blocks)
    each, all_pairs = h.pairs.sum(axis=1), int(h.pairs.sum())
    many = each > 0
    columns: dict[str, NDArray[Any] | None] = {
        "blocks": h.blocks.sum(axis=1),
        "runs": h.runs.sum(axis=1),
        "mergeable": h.ascending.sum(axis=1)[many] / each[many],
        "descriptors": merged,
        "descriptors_unmerged": unmerged,
        "posting_s": model.posting(merged),
        "transfer_s": model.transfer(merged, size),
        "posting_unmerged_s": model.posting(unmerged),
        "transfer_unmerged_s": model.transfer(unmerged, size),
    }
    transfer = columns["transfer_s"]
    if transfer is not None:
        columns["total_s"] = model.posting(merged) + transfer
    order = np.lexsort((h.request, -merged))[:WORST]
    sums = ("blocks", "runs", "descriptors", "descriptors_unmerged", "posting_s", "transfer_s", "total_s")
    blocks, runs = columns["blocks"], columns["runs"]
    assert blocks is not None
    assert runs is not None
    return {
        "when": h.when,
        "requests": len(h.request),
        "without_table": h.missed,
        "adjacent_pairs": all_pairs,
        "mergeable": int(h.ascending.sum()) / all_pairs if all_pairs else None,
        "descending": int(h.descending.sum()) / all_pairs if all_pairs else None,
        "cost_model": asdict(model),
        "bytes": None if size is None else int(size.sum()),
        "totals": {k: v.sum().item() for k in sums if (v := columns.get(k)) is not None},
        "per_request": {k: _distribution(v) for k, v in columns.items() if v is not None},
        "most": [
            {
                "request": h.names[h.request[i]] if h.names else int(h.request[i]),
                "time_s": int(h.time_ns[i]) / 1e9,
                "blocks": int(blocks[i]),
                "runs": int(runs[i]),
                "descriptors": int(merged[i]),
            }
            for i in order
        ],
        "groups": [_group(h, model, g, merged) for g in range(h.blocks.shape[1])],
        "definitions": DEFINITIONS,
    }


def _group(h: Handoffs, model: CostModel, g: int, merged: I64) -> dict[str, Any]:
    pairs, sent = int(h.pairs[:, g].sum()), int(h.runs[:, g].sum()) * model.regions[g]
    return {
        "group": g,
        "regions": model.regions[g],
        "blocks": int(h.blocks[:, g].sum()),
        "runs": int(h.runs[:, g].sum()),
        "descriptors": sent,
        "mergeable": int(h.ascending[:, g].sum()) / pairs if pairs else None,
        "share_of_descriptors": sent / int(merged.sum()) if merged.sum() else None,
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


def _who(request: int | str) -> str:
    return f"r{request}" if isinstance(request, int) else request


def text(name: str, costs: Mapping[str, Any], group_names: Sequence[str] = (), seen: str = "") -> str:
    """The costs on one screen, the answer first.

    Args:
        name: of the run.
        costs: of `descriptor_costs`.
        group_names: of the KV-cache groups.
        seen: where the tables come from, if not from a simulation.
    """
    m, n = costs["cost_model"], costs["requests"]
    moment = "its first token" if costs["when"] == "first-token" else "its end"
    out = [f"{name}: KV of {plural(n, 'request')} sent, each at {moment}"]
    if seen:
        out.append(f"  {seen}")
    if not n:
        return "\n".join(out) + "\n"
    totals = costs["totals"]
    if costs["mergeable"] is None:
        out.append("  no table has two blocks: there is nothing to merge")
    else:
        out.append(
            f"  {share(costs['mergeable'])} of adjacent block pairs can be merged"
            f" ({share(costs['descending'])} are adjacent in descending order)"
        )
    sent = "" if costs["bytes"] is None else f" for {size(costs['bytes'])}"
    line = f"  {count(totals['descriptors'])} descriptors{sent} ({count(totals['descriptors_unmerged'])}"
    one = len(costs["groups"]) == 1
    formula = f", {plural(m['regions'][0], 'region')} x {count(totals['runs'])} runs" if one else ""
    out.append(f"{line} without merging){formula}")
    if not one:
        heads = f"{'regions':>8}{'blocks':>12}{'runs':>12}{'mergeable':>11}{'of all':>8}"
        out += ["", f"  {'by KV-cache group':<34}{heads}"]
        for g, row in enumerate(costs["groups"]):
            name = group_names[g] if group_names else ""
            out.append(
                f"  {f'{g}: {name}':<34}{row['regions']:>8}{count(row['blocks']):>12}{count(row['runs']):>12}"
                f"{share(row['mergeable']):>11}{share(row['share_of_descriptors']):>8}"
            )
    if costs["without_table"]:
        out.append(
            f"  {plural(costs['without_table'], 'request')} had no table: "
            + ("no recorded state shows it" if seen else "preempted when the token came")
        )
    out += ["", f"  {'per request':<26}{'mean':>12}{'p50':>12}{'p90':>12}{'p99':>12}{'max':>12}"]
    for label, key, how in _ROWS:
        d = costs["per_request"].get(key)
        if d is not None:
            out.append(f"  {label:<26}" + "".join(f"{how(v):>12}" for v in d.values()))
    out += ["", "  most descriptors:"]
    for r in costs["most"]:
        out.append(
            f"    {_who(r['request'])} at {seconds(r['time_s'])}: {plural(r['blocks'], 'block')} in"
            f" {plural(r['runs'], 'run')}, {plural(r['descriptors'], 'descriptor')}"
        )
    out += [
        "",
        f"  cost model: {count(m['post_s'] * 1e6)} us to post a descriptor and {count(m['wire_s'] * 1e6)} us",
    ]
    out[-1] += f" to move it, {m['bandwidth'] / 1e9:g} GB/s, {seconds(m['latency_s'])} latency; on each GPU"
    return "\n".join(out) + "\n"
