"""Executable reference of the control plane, in plain Python: what the jitted core must equal.

It mirrors vLLM 0.32.0 for every type of KV-cache group, uses vLLM's names, keeps no derived state and favours
clarity over speed. Nothing here imports numpy, numba or the rest of this project but its table of releases.
"""

from sim.reference.async_scheduler import AsyncScheduler
from sim.reference.block_pool import BlockPool, KVCacheBlock
from sim.reference.engine import Engine, EngineStuck
from sim.reference.free_queue import FreeKVCacheBlockQueue
from sim.reference.kv_cache_manager import KVCacheManager
from sim.reference.prefix_map import BlockHashToBlockMap
from sim.reference.request import Request, RequestStatus
from sim.reference.scheduler import Scheduler
from sim.reference.scheduler_output import SchedulerOutput
from sim.reference.settings import KVCacheGroup, Settings
from sim.reference.steplog import record

__all__ = [
    "AsyncScheduler",
    "BlockHashToBlockMap",
    "BlockPool",
    "Engine",
    "EngineStuck",
    "FreeKVCacheBlockQueue",
    "KVCacheBlock",
    "KVCacheGroup",
    "KVCacheManager",
    "Request",
    "RequestStatus",
    "Scheduler",
    "SchedulerOutput",
    "Settings",
    "record",
]
