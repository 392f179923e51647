"""The list of published tables: a new one is a module with a ``make`` function, and an entry here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.published.table import Table

DEFAULT_SEEDS = 20


@dataclass(frozen=True)
class Options:
    """What the command line says; a table uses what applies to it.

    Attributes:
        trace: the trace file, None: the one in KVPOOL_DATA.
        seeds: seeds to run, from 0.
    """

    trace: str | None = None
    seeds: int = DEFAULT_SEEDS


@dataclass(frozen=True)
class Entry:
    """One published table.

    Attributes:
        name: the command, ``python -m sim.published NAME``.
        about: one line for the help.
        module: has ``make(options: Options) -> Table``, which raises InputError on bad input.
        takes: fields of Options that it uses.
    """

    name: str
    about: str
    module: str
    takes: tuple[str, ...] = ()

    def make(self, options: Options) -> Table:
        """Run what the table needs.

        Raises:
            InputError: a trace or a config is missing or broken.
        """
        table: Table = import_module(self.module).make(options)
        return table


#: In the order in which they are printed.
ENTRIES = (
    Entry(
        "mooncake-lru",
        "Hit rate of a plain LRU prefix cache on the Mooncake conversation trace, by capacity.",
        "sim.published.mooncake_lru",
        ("trace",),
    ),
    Entry(
        "azure-waste",
        "Waste in the last block at completion on the Azure conversation trace, by block size.",
        "sim.published.azure_waste",
        ("trace",),
    ),
    Entry(
        "token-usage",
        "Usage of the pool by blocks and by token slots, as measured on a real vLLM (PR 57336).",
        "sim.published.token_usage",
    ),
    Entry(
        "padding",
        "KV memory that holds nothing of use where all layers keep all tokens (RFC 11382).",
        "sim.published.padding",
    ),
    Entry(
        "sliding-window",
        "Where the prefix hits of a model with sliding windows end, as reported from a real vLLM (48435).",
        "sim.published.sliding_window",
    ),
    Entry(
        "contiguity",
        "Transfer descriptors that can be merged with blocks in free-queue order (PR 55841, 55434).",
        "sim.published.contiguity",
    ),
    Entry(
        "watermark",
        "Preemptions by watermark, as measured on a real vLLM (PR 44594).",
        "sim.published.watermark",
        ("seeds",),
    ),
)
