"""A logits processor (vLLM's V1 interface) that makes a real engine produce given output tokens.

Importing this module imports vllm: it is named to vLLM by its path and imported by the engine only.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

#: Key of `SamplingParams.extra_args`: the list of token ids to produce.
OUTPUT_KEY = "kvpool_output_token_ids"


class ForcedOutput(LogitsProcessor):
    """Leaves each request one possible next token: the one at the position that its output has reached."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.device = device
        #: batch row -> (tokens to produce, vLLM's live list of tokens produced so far)
        self.rows: dict[int, tuple[list[int], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """It decides the argmax."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests as vLLM adds, removes and moves them in the persistent batch."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.rows.pop(index, None)
        for index, params, _, produced in batch_update.added:
            wanted = (params.extra_args or {}).get(OUTPUT_KEY)
            if wanted is None:
                self.rows.pop(index, None)
            else:
                self.rows[index] = (wanted, produced)
        for a, b, direction in batch_update.moved:
            row_a, row_b = self.rows.pop(a, None), self.rows.pop(b, None)
            if row_a is not None:
                self.rows[b] = row_a
            if direction == MoveDirectionality.SWAP and row_b is not None:
                self.rows[a] = row_b

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits: float[rows, vocabulary], changed in place."""
        if not self.rows:
            return logits
        rows = sorted(index for index in self.rows if index < logits.shape[0])
        wanted = []
        for index in rows:
            tokens, produced = self.rows[index]
            # A prompt that is not done yet samples too, and vLLM throws that token away.
            wanted.append(tokens[min(len(produced), len(tokens) - 1)])
        at = torch.tensor(rows, device=logits.device)
        logits[at] = float("-inf")
        logits[at, torch.tensor(wanted, device=logits.device)] = 0.0
        return logits
