"""Named integers of the core: request states, phases, exit reasons, counters and event types."""

from enum import IntEnum

# KV-cache group types (vLLM 0.32.0, KVCacheSpec subclasses)
GROUP_FULL = 0  # MLA too, which differs in page size alone
GROUP_SLIDING_WINDOW = 1
GROUP_CHUNKED_LOCAL = 2
GROUP_MAMBA = 3  # one running state a request; with prefix caching in mode "align"
GROUP_CROSS = 4  # reads the encoder's output of its request

# What the slots of a group's blocks hold
SLOTS_NONE = 0  # a block is a state
SLOTS_TOKENS = 1
SLOTS_ENCODER_TOKENS = 2

# Scheduling policies
POLICY_FCFS = 0
POLICY_PRIORITY = 1

# Rule of free_blocks (VLLM.md 1.5): append all, or unhashed to the front and hashed to the tail
FREE_APPEND = 0
FREE_SPLIT = 1
FREE_SPLIT_WINDOWS = 2  # as FREE_APPEND, but split what left a window and sliding-window tables

# Priority policy: the running phase after a victim was taken (VLLM.md 4.1)
PRIORITY_OLD = 0  # the index moves back only if the victim was scheduled in this step
PRIORITY_FIXED_INDEX = 1  # it moves back if the victim stood before it (>= 0.28)
PRIORITY_GO_ON = 2  # and a request that is its own victim does not end the phase (>= 0.33)

# Window groups: which computed tokens count when blocks leave the window (VLLM.md 5.3)
WINDOW_OPTIMISTIC = 0  # those of batches in flight too
WINDOW_PROCESSED = 1  # processed ones only (>= 0.26)

# Retention of window blocks where it is no interval (VLLM.md 5.4)
RETAIN_ALL = -2  # every full block is cached (<= 0.21)
RETAIN_UNEVEN = -3  # as dense where blocks are smaller than the common size, else all (0.22)
RETAIN_DENSE = -1  # what a hit of some aligned length needs (interval null)

# Groups of unequal block size: the further key of a prompt that ends inside a block
TAIL_NONE = 0
TAIL_WHOLE = 1  # at the last hash unit of the prompt (0.26 to 0.31)
TAIL_USABLE = 2  # at the last one that a hit on the same prompt can use

# ---- Mamba: where prefill chunks end ----
CHUNKS_PROMPTS = 0  # as below, but only those of a request without a token of output (<= 0.16)
CHUNKS_BLOCKS = 1  # whole blocks of tokens, wherever they start (0.17 to 0.25)
CHUNKS_TO_LAST = 2  # ends of blocks up to the last that the known text fills (0.26)
CHUNKS_ENDS = 3  # ends of blocks (0.27 to 0.31)
CHUNKS_HITS = 4  # ends of blocks, and where an equal prompt can resume

# ---- Mamba: where the state at a prompt's end gets a key ----
STATE_TAIL_NONE = 0  # nowhere (<= 0.25)
STATE_TAIL_INSIDE = 1  # at its last hash unit, inside a block only (0.26 to 0.29)
STATE_TAIL_MARKED = 2  # and a unit earlier in groups whose hits lose their last block (0.30)
STATE_TAIL_DROPPED = 3  # and a unit earlier where hits lose their last block (0.31)
STATE_TAIL_USABLE = 4  # at the last place that a hit on the same prompt can use

# ---- Mamba: exported states ----
EXPORTS_EACH = 0  # of each step, at its last hash unit (0.30)
EXPORTS_PROMPT = 1  # with retention 0 of steps that reach the end of the known text (0.31)
EXPORTS_HITS = 2  # the same, at the last place where a hit may end

# ---- several groups: up to where tokens are cached ----
CACHES_ALL = 0  # (<= 0.21)
CACHES_COMMON = 1  # rounded down to the common block size (0.22)
CACHES_ALIGNED = 2  # and the block behind it where a hit loses its last

# ---- drafts: what is looked up where a hit loses its last block ----
LOOKUP_EACH_ROUND = 0  # what is asked for; dropped in each round (<= 0.19)
LOOKUP_IN_PROMPT = 1  # a block more within the text that may hit; dropped once for each length (0.20 to 0.25)
LOOKUP_ATTENTION = 2  # the same, but no state is looked up so (0.26 to 0.31)
LOOKUP_BEHIND = 3  # a block more within what is known; no state is looked up so

# ---- drafts: which admissions of one token look like a decode ----
PADS_NONE = 0  # (<= 0.24)
PADS_BESIDE = 1  # those beside decodes alone; where the rows don't fit, nobody gets in (0.25 to 0.28)
PADS_FITTING = 2  # those beside decodes alone, if the rows fit (0.29)
PADS_HITS = 3  # those behind a prefix hit, too

# ---- several groups: what becomes of a prefix that only some of them hit ----
SHARED_NONE = 0  # nothing (<= 0.23)
SHARED_CHUNKS = 1  # a first chunk ends there for a Mamba state (0.24 and 0.25)
SHARED_KEPT = 2  # retained, and chunks end there

# What the engine's clock counts
CLOCK_TIME = 0
CLOCK_LOGICAL = 1


# Request states; the ``status`` column of requests.parquet
S_NOT_ARRIVED = -1
S_WAITING = 0
S_RUNNING = 1
S_PREEMPTED = 2
S_FINISHED = 3
S_REJECTED = 4
S_UNSERVABLE = 5
S_ABORTED = 6

# What the engine does next
P_SCHEDULE = 0
P_UPDATE = 1

# Why run_until or advance returned
X_SCHEDULED = 0  # advance: one schedule() was made
X_UPDATED = 1  # advance: one update_from_output() was made
X_DONE = 2  # no request is left, none will come
X_TIME = 3  # the next phase lies at or after t_end
X_MAX_STEPS = 4
X_LOG_FULL = 5  # drain the step log and call again
X_EVENTS_FULL = 6  # drain the event log and call again
X_STUCK = 7  # logical clock: the head of the queue can never be admitted and nothing else will happen
X_ENDED = 8  # a watched request ended: clear ctl.num_ended_watched and call again


class Status(IntEnum):
    """State of a request, for the shell; the core uses the plain integers."""

    NOT_ARRIVED = S_NOT_ARRIVED
    WAITING = S_WAITING
    RUNNING = S_RUNNING
    PREEMPTED = S_PREEMPTED
    FINISHED = S_FINISHED
    REJECTED = S_REJECTED
    UNSERVABLE = S_UNSERVABLE
    ABORTED = S_ABORTED


class ExitReason(IntEnum):
    """Why ``run_until`` or ``advance`` returned, for the shell."""

    SCHEDULED = X_SCHEDULED
    UPDATED = X_UPDATED
    DONE = X_DONE
    TIME = X_TIME
    MAX_STEPS = X_MAX_STEPS
    LOG_FULL = X_LOG_FULL
    EVENTS_FULL = X_EVENTS_FULL
    STUCK = X_STUCK
    ENDED = X_ENDED


# What goes into the event log
LOG_NOTHING = 0
LOG_ALL = 1
LOG_REQUESTS = 2  # what happens to requests, not to blocks

# When a run gets nowhere
ALONE_ROUNDS = 8  # times that a request alone outgrows the pool and comes no further
PATIENCE = (
    1000  # schedule calls that preempt and bring no token, beside those that the requests' tokens explain
)


# ---- event types (column 1 of the event log); those from EV_ADMITTED on are about requests ----
EV_BLOCK_STORED = 0
EV_BLOCK_REMOVED = 1
EV_ALL_BLOCKS_CLEARED = 2
EV_ADMITTED = 3
EV_PREEMPTED = 4
EV_FINISHED = 5
EV_ALLOCATION_FAILED = 6
EVENT_COLUMNS = 6
EVENT_NAMES = (
    "block_stored",
    "block_removed",
    "all_blocks_cleared",
    "admitted",
    "preempted",
    "finished",
    "allocation_failed",
)

# ---- columns of the step log ----
LOG_COLUMNS = (
    "time_ns",
    "step",
    "num_running",
    "num_waiting",
    "num_free_blocks",
    "used_blocks",
    "num_cached_hashes",
    "num_cached_blocks",
    "cached_free_blocks",
    "num_scheduled_tokens",
    "num_scheduled_reqs",
    "allocated_slots",
    "held_tokens",
    "wasted_slots",
    "free_runs",
    "largest_free_run",
    "table_blocks",
    "table_runs",
    "prefix_queries",
    "prefix_hits",
    "preempted_queries",
    "preempted_hits",
    "preemptions",
    "finished",
    "evictions",
    "step_duration_ns",
)

# ---- time-weighted metrics ----
TW_METRICS = (
    "usage",
    "internal_fragmentation",
    "external_fragmentation",
    "num_running",
    "num_waiting",
    "free_runs",
)
TW_FRACTIONS = 3  # the first three are fractions, the others counts
TW_FRACTION_UNIT = 1_000_000  # histogram bins of fractions are those of log_bin() for millionths
TW_BINS = 7424  # bins of log_bin() up to 2**63
