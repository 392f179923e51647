"""The memory budget and the layout of one block, as a PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.gpus import GIB
from sim.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RC, SKY, save
from sim.sizing.report import PARTS, Budget, kind_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PART_COLORS = {
    "weights": ORANGE,
    "drafter": GREEN,
    "activations": PURPLE,
    "other": GREY,
    "cuda_graphs": "#BBBBBB",
    "kv_cache": BLUE,
    "not_requested": "#EEEEEE",
}
_KIND_COLORS = {
    "full": BLUE,
    "mla": BLUE,
    "sliding_window": SKY,
    "chunked_local": GREEN,
    "mamba": PURPLE,
    "cross_attention": ORANGE,
}
#: Groups that are drawn; those beyond are counted in a line of text.
MOST_GROUPS = 12


def draw(budget: Budget) -> bytes:
    """The picture; the same bytes each time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    plan = budget.plan
    rows = min(len(plan.groups), MOST_GROUPS)
    rc: Any = RC
    # inches, from the top: title, bar, axis and legend, groups, axis
    bar, gap, groups, bottom = 0.75, 1.15, 0.31 * max(rows, 1) + 0.1, 0.65
    height = 0.5 + bar + gap + groups + bottom
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(rc)
        figure = Figure(figsize=(9.0, height))
        left, width = 0.2, 0.77
        upper = figure.add_axes((left, 1 - (0.5 + bar) / height, width, bar / height))
        lower = figure.add_axes((left, bottom / height, width, groups / height))
        _memory(upper, budget)
        _block(lower, budget, rows)
        return save(figure, "png")


def _memory(axes: Axes, budget: Budget) -> None:
    split = "" if budget.tensor_parallel == 1 else f" x {budget.tensor_parallel}"
    gpu = budget.gpu.name if budget.gpu else "a GPU that is not named"
    axes.set_title(f"{budget.model.name} on {gpu}{split}: memory of each GPU")
    at = 0.0
    parts = budget.parts or {"kv_cache": budget.plan.available_bytes}
    total = sum(max(0, v) for v in parts.values())
    for key, label, _ in PARTS:
        size = max(0, parts.get(key, 0))
        if not size:
            continue
        exact = key == "not_requested" or (key == "kv_cache" and budget.pool.how != "estimated")
        edge: dict[str, Any] = {} if exact else {"hatch": "///", "edgecolor": "white", "linewidth": 0.0}
        axes.barh(0, size / GIB, left=at / GIB, height=0.6, color=_PART_COLORS[key], label=label, **edge)
        if size > 0.07 * total:
            text = f"{size / GIB:.1f} GiB"
            box = {"facecolor": _PART_COLORS[key], "edgecolor": "none", "pad": 1.5}
            axes.text((at + size / 2) / GIB, 0, text, ha="center", va="center",
                      color=_ink(_PART_COLORS[key]), fontsize=8.5, bbox=box)  # fmt: skip
        at += size
    axes.set_yticks([])
    axes.set_ylim(-0.5, 0.5)
    axes.set_xlim(0, total / GIB)
    axes.set_xlabel("GiB; hatched: estimated, plain: exact")
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.6), ncol=7, columnspacing=1.2)


def _ink(color: str) -> str:
    """Black or white, whichever is read better on a colour such as "#0072B2"."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _block(axes: Axes, budget: Budget, rows: int) -> None:
    plan = budget.plan
    if not plan.groups:
        axes.set_axis_off()
        axes.text(0, 0.5, "no KV cache")
        return
    more = "" if rows == len(plan.groups) else f" (first {rows} of {len(plan.groups)} groups)"
    axes.set_title(f"One block in each group: {plan.block_bytes / 1024:,.0f} KiB{more}")
    labels = []
    for i, (g, blocks) in enumerate(zip(plan.groups[:rows], plan.request_blocks, strict=False)):
        left = 0.0
        for member in g.members:
            content, page = member.content_bytes / 1024, member.page_bytes / 1024
            axes.barh(i, content, left=left, height=0.7, color=_KIND_COLORS[g.spec.kind], edgecolor="white",
                      linewidth=0.4 if len(g.members) < 70 else 0.0)  # fmt: skip
            if page > content:
                _lost(axes, i, left + content, page - content)
            left += page
        if left < plan.block_bytes / 1024:
            _lost(axes, i, left, plan.block_bytes / 1024 - left)
        labels.append(f"{kind_text(g)}, {len(g.layers)} layers")
        axes.text(
            1.01 * plan.block_bytes / 1024,
            i,
            f"{g.spec.block_size:,} tokens; {blocks:,} block{'' if blocks == 1 else 's'}",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(rows), labels)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlim(0, 1.3 * plan.block_bytes / 1024)
    axes.set_xticks([t for t in axes.get_xticks() if t <= 1.001 * plan.block_bytes / 1024])
    axes.set_xlabel(
        f"KiB; each cell is a layer, hatched: padding; blocks are those of a request of"
        f" {plan.limits.max_model_len:,} tokens"
    )
    axes.grid(False)


def _lost(axes: Axes, row: int, left: float, width: float) -> None:
    axes.barh(
        row, width, left=left, height=0.7, color="#F4F4F4", edgecolor="#999999", hatch="////", linewidth=0.0
    )
