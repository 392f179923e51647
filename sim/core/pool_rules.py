"""How blocks are taken, in the version that the engine's groups need: see ``switch``."""

from __future__ import annotations

from sim.core import block_pool, probes, spare_blocks
from sim.core.switch import Switch

get_new_blocks = Switch(block_pool.get_new_blocks, spare_blocks.get_new_blocks)
fits_in_a_run = Switch(probes.fits_in_a_run, spare_blocks.fits_in_a_run)
rank = Switch(block_pool.settled, spare_blocks.rank)
settle = Switch(block_pool.settled, spare_blocks.settle)
