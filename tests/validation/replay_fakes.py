"""A clock that a test moves, an engine that serves everybody at once, and a small config."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from validation.replay.client import Token

CONFIG = """
name: tiny
seed: 3
engine:
  block_size: 4
  num_gpu_blocks: 40
  max_num_seqs: 4
  max_num_batched_tokens: 64
  max_model_len: 128
  async_scheduling: false
step_time: {kind: affine, overhead: 2ms, prefill_token: 50us, decode_sequence: 300us, context_token: 1us}
workload:
  kind: chat
  vocab_size: 4096
  arrivals: {kind: poisson, rate: 30}
  num_sessions: 12
  personas: 2
  system_len: 12
  user_len: 10
  output_len: {kind: uniform, low: 2, high: 20}
  turns: 2.0
  think_time: 20ms
  max_context: 100
"""


def write_config(folder: Path, text: str = CONFIG) -> Path:
    """The config as a file."""
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


class FakeClock:
    """Time that passes only when somebody lets it."""

    def __init__(self) -> None:
        self.ns = 0

    def now(self) -> int:
        return self.ns

    def wait_until(self, ns: int) -> None:
        self.ns = max(self.ns, ns)


class OneTokenEngine:
    """Gives each request it holds one token a step, which takes 10 ns; all are served at once."""

    def __init__(self, clock: FakeClock, output_len: np.ndarray) -> None:
        self.clock = clock
        self.output_len = output_len
        self.left: dict[int, int] = {}
        self.added: list[tuple[int, int]] = []

    def add(self, index: int, arrival_ns: int) -> None:
        self.added.append((index, arrival_ns))
        self.left[index] = int(self.output_len[index])

    def busy(self) -> bool:
        return bool(self.left)

    def step(self) -> list[Token]:
        self.clock.ns += 10
        out = []
        for index in list(self.left):
            self.left[index] -= 1
            out.append(Token(index, 1, self.left[index] == 0))
            if not self.left[index]:
                del self.left[index]
        return out
