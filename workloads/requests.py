"""The workload: what arrives, when, with which prompt, as a few flat arrays.

One `Workload` is everything that the simulator, the reference twin and a real vLLM need to run the same
requests. `WorkloadBuilder` (workloads.builder) makes one; `Workload.validate` checks every rule written here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.errors import WorkloadError
from workloads.tokens import MAX_VOCAB_SIZE, tokens_of

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]

#: name -> (dtype, length: n requests, n+1, m pieces, k explicit tokens); in the order of the hash.
ARRAY_FIELDS: dict[str, tuple[type[np.signedinteger[Any]], str]] = {
    "arrival": (np.int64, "n"),
    "parent": (np.int32, "n"),
    "think_ns": (np.int64, "n"),
    "seg_ptr": (np.int64, "n+1"),
    "seg_id": (np.int64, "m"),
    "seg_start": (np.int32, "m"),
    "seg_len": (np.int32, "m"),
    "out_seg": (np.int64, "n"),
    "prompt_len": (np.int32, "n"),
    "output_len": (np.int32, "n"),
    "max_tokens": (np.int32, "n"),
    "priority": (np.int32, "n"),
    "salt": (np.int64, "n"),
    "session": (np.int32, "n"),
    "tokens": (np.int32, "k"),
}

CLOCKS = ("time", "logical")


@dataclass(frozen=True, eq=False)
class Workload:
    """n requests in sequence order (of the file, or of nominal arrival); arrays are C-contiguous."""

    clock: str
    """"time": `arrival` is in ns; "logical": `arrival` is an engine step index."""
    arrival: Int64Array
    """int64[n], >= 0; or -1: released by the parent or from the closed-loop pool."""
    parent: Int32Array
    """int32[n], -1, or the index p < i of the request whose end (finished, dropped or rejected) plus
    `think_ns` is this request's arrival."""
    think_ns: Int64Array
    """int64[n], ns after the parent's end, or after the closed-loop completion that releases the request."""
    closed_loop: bool
    """True: requests with arrival == -1 and parent == -1 form a pool, released in index order, one for each
    completed request."""
    seg_ptr: Int64Array
    """int64[n + 1]; the prompt of request i is the pieces seg_ptr[i]:seg_ptr[i + 1]."""
    seg_id: Int64Array
    """int64[m]; >= 0 synthetic segment; < 0 explicit tokens, the piece begins at
    tokens[-(seg_id + 1) + seg_start]."""
    seg_start: Int32Array
    """int32[m], offset inside the segment where the piece begins, tokens."""
    seg_len: Int32Array
    """int32[m], tokens of the piece, >= 1."""
    out_seg: Int64Array
    """int64[n], segment (same coding) of the output: token k of the output is token (out_seg, k)."""
    prompt_len: Int32Array
    """int32[n], tokens, the sum of the pieces' lengths, >= 1."""
    output_len: Int32Array
    """int32[n], tokens generated before the request stops, >= 1."""
    max_tokens: Int32Array
    """int32[n], >= output_len; equal: the request stops by length, greater: it stops by an end token."""
    priority: Int32Array
    """int32[n], lower is served first."""
    salt: Int64Array
    """int64[n], 0: none; else an id of the cache_salt string."""
    session: Int32Array
    """int32[n], conversation or client id, -1: none."""
    tokens: Int32Array
    """int32[k], pool of explicit token ids."""
    vocab_size: int
    """Synthetic token ids lie in [0, vocab_size)."""
    request_ids: tuple[str, ...] | None = None
    """Unique names; None: "r0", "r1", ..."""
    accepted_drafts: tuple[tuple[int, ...], ...] | None = None
    """For engines with drafts: how many of them the verifying steps of each request accept, in turn and again
    from the beginning; (): as the engine's acceptance rate says. None: so for all requests."""
    encoder_tokens: Int32Array | None = None
    """For models with cross attention: int32[n], tokens of each request's encoder input, -1: as the engine
    says. None: so for all requests."""
    source: dict[str, Any] = field(default_factory=dict)
    """Provenance (kind, parameters, seed, sha256 of the file, notes): JSON-able, not part of the hash."""

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def longest_encoder_input(self) -> int:
        """Most encoder tokens that a request names, 0: none does."""
        return 0 if self.encoder_tokens is None else max(0, int(self.encoder_tokens.max(initial=0)))

    def request_id(self, i: int) -> str:
        """The name of request i."""
        return f"r{i}" if self.request_ids is None else self.request_ids[i]

    def prompt_tokens(self, i: int) -> Int32Array:
        """Token ids of the prompt of request i, int32[prompt_len[i]]."""
        pieces = range(int(self.seg_ptr[i]), int(self.seg_ptr[i + 1]))
        return np.concatenate(
            [
                tokens_of(
                    int(self.seg_id[j]),
                    int(self.seg_start[j]),
                    int(self.seg_len[j]),
                    self.vocab_size,
                    self.tokens,
                )
                for j in pieces
            ]
        )

    def output_tokens(self, i: int) -> Int32Array:
        """Token ids that request i generates, int32[output_len[i]]."""
        return tokens_of(int(self.out_seg[i]), 0, int(self.output_len[i]), self.vocab_size, self.tokens)

    def content_hash(self) -> str:
        """SHA-256 (hex) of everything that can change a simulation: the "trace hash".

        `source` is left out. Request names count, because they appear in results.
        """
        digest = hashlib.sha256()
        digest.update(f"kvpool-workload-1 {self.clock} {self.closed_loop} {self.vocab_size}\n".encode())
        for name, (dtype, _) in ARRAY_FIELDS.items():
            array = np.ascontiguousarray(getattr(self, name), dtype=np.dtype(dtype).newbyteorder("<"))
            digest.update(f"{name} {len(array)}\n".encode())
            digest.update(array.tobytes())
        if self.request_ids is not None:
            for name in self.request_ids:
                encoded = name.encode()
                digest.update(f"{len(encoded)} ".encode())
                digest.update(encoded)
        if self.accepted_drafts is not None:
            digest.update(f"accepted_drafts {self.accepted_drafts}\n".encode())
        if self.encoder_tokens is not None:
            digest.update(f"encoder_tokens {len(self.encoder_tokens)}\n".encode())
            digest.update(self.encoder_tokens.astype("<i4").tobytes())
        return digest.hexdigest()

    def validate(self) -> None:
        """Check every rule of the fields above; raise `WorkloadError` naming the first offending request."""
        self._validate_shapes()
        self._validate_pieces()
        self._validate_requests()
        self._validate_drafts()
        self._validate_encoder_tokens()

    def _name(self, i: int) -> str:
        return f"request {i} ({self.request_id(i)!r})"

    def _refuse(self, bad: NDArray[np.bool_], what: str) -> None:
        if bad.any():
            raise WorkloadError(f"{self._name(int(np.argmax(bad)))}: {what}")

    def _refuse_piece(self, bad: NDArray[np.bool_], what: str) -> None:
        if bad.any():
            piece = int(np.argmax(bad))
            i = int(np.searchsorted(self.seg_ptr, piece, side="right")) - 1
            raise WorkloadError(f"{self._name(i)}: piece {piece - int(self.seg_ptr[i])} of the prompt {what}")

    def _validate_shapes(self) -> None:
        if self.clock not in CLOCKS:
            raise WorkloadError(f"clock must be one of {', '.join(CLOCKS)}, got {self.clock!r}")
        if not 1 <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise WorkloadError(f"vocab_size must be in [1, {MAX_VOCAB_SIZE}], got {self.vocab_size}")
        n, m = len(self.arrival), len(self.seg_id)
        if n == 0:
            raise WorkloadError("the workload has no requests")
        lengths = {"n": n, "n+1": n + 1, "m": m, "k": len(self.tokens)}
        for name, (dtype, symbol) in ARRAY_FIELDS.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != (lengths[symbol],) or not array.flags.c_contiguous:
                raise WorkloadError(
                    f"array {name} must be a contiguous {np.dtype(dtype).name}[{lengths[symbol]}], "
                    f"got {array.dtype.name}{list(array.shape)}"
                )
        if self.request_ids is not None:
            if len(self.request_ids) != n:
                raise WorkloadError(f"{len(self.request_ids)} request ids for {n} requests")
            if len(set(self.request_ids)) != n:
                first: dict[str, int] = {}
                for i, name in enumerate(self.request_ids):
                    if first.setdefault(name, i) != i:
                        raise WorkloadError(
                            f"{self._name(i)}: the id is already that of request {first[name]}"
                        )

    def _validate_pieces(self) -> None:
        n, m = len(self.arrival), len(self.seg_id)
        if self.seg_ptr[0] != 0 or self.seg_ptr[n] != m:
            raise WorkloadError(f"seg_ptr must begin at 0 and end at {m}")
        self._refuse(np.diff(self.seg_ptr) < 1, "the prompt is empty; a request needs at least one token")
        self._refuse_piece(self.seg_len < 1, "has no tokens")
        self._refuse_piece(self.seg_start < 0, "begins before its segment")
        end = self.seg_start.astype(np.int64) + self.seg_len
        self._refuse_piece(end > np.iinfo(np.int32).max, "ends beyond 2**31 tokens of its segment")
        explicit = self.seg_id < 0
        outside = explicit & (-(self.seg_id + 1) + end > len(self.tokens))
        self._refuse_piece(outside, f"lies outside the pool of {len(self.tokens)} explicit tokens")
        sums = np.add.reduceat(self.seg_len.astype(np.int64), self.seg_ptr[:-1])
        self._refuse(sums != self.prompt_len, "prompt_len is not the sum of the lengths of its pieces")
        if len(self.tokens) and self.tokens.min() < 0:
            raise WorkloadError(f"explicit token {int(np.argmax(self.tokens < 0))} of the pool is negative")

    def _validate_drafts(self) -> None:
        given = self.accepted_drafts
        if given is None:
            return
        if len(given) != len(self):
            raise WorkloadError(f"{len(given)} patterns of accepted drafts for {len(self)} requests")
        for i, own in enumerate(given):
            if any(not 0 <= k < 2**31 for k in own):
                raise WorkloadError(f"{self._name(i)}: a number of accepted drafts is negative or too large")

    def _validate_encoder_tokens(self) -> None:
        given = self.encoder_tokens
        if given is None:
            return
        if given.dtype != np.int32 or given.shape != (len(self),):
            raise WorkloadError(f"encoder_tokens must be an int32[{len(self)}]")
        self._refuse(given < -1, "the number of encoder tokens is negative")

    def _validate_requests(self) -> None:
        index = np.arange(len(self.arrival))
        pool = (self.arrival == -1) & (self.parent == -1)
        self._refuse(self.output_len < 1, "output_len must be at least 1")
        self._refuse(self.max_tokens < self.output_len, "max_tokens is less than output_len")
        out_end = -(self.out_seg + 1) + self.output_len
        self._refuse((self.out_seg < 0) & (out_end > len(self.tokens)), "output tokens lie outside the pool")
        self._refuse(self.arrival < -1, "the arrival is negative")
        self._refuse(
            (self.parent < -1) | (self.parent >= index), "the parent must be an earlier request (or -1)"
        )
        self._refuse((self.parent >= 0) & (self.arrival != -1), "has both a parent and an arrival")
        if not self.closed_loop:
            self._refuse(pool, "has neither an arrival nor a parent, and the workload is not closed-loop")
        elif pool.all():
            raise WorkloadError("closed loop: no request has an arrival, so none would ever be released")
        if self.clock == "logical":
            self._refuse(self.arrival < 0, "a logical-time workload needs an arrival step for every request")
        self._refuse(self.think_ns < 0, "the think time is negative")
        self._refuse((self.think_ns > 0) & (self.arrival >= 0), "has both an arrival and a think time")
        self._refuse(self.salt < 0, "the cache salt id is negative")
        self._refuse(self.session < -1, "the session is below -1")
