"""What a switch is: one rule of vLLM that has changed between releases. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: What an engine may have, and rules may be about.
FEATURES = {
    "async": "async scheduling",
    "caching": "prefix caching",
    "priority": "the priority policy",
    "threshold": "long_prefill_token_threshold",
    "watermark": "a watermark",
    "memory": "a pool sized by memory",
    "model": "a model that gives the groups",
    "blocks": "a given number of blocks",
    "huge": "a GPU of 160 GiB",
    "latent": "latent attention",
    "groups": "several KV-cache groups",
    "windows": "sliding windows or chunks",
    "sparse": "windows, chunks or Mamba states",
    "states": "Mamba states",
    "drafts": "drafts",
    "encoder": "an encoder",
}


@dataclass(frozen=True)
class Onset:
    """Since which release a switch has a value.

    Attributes:
        release: "0.MINOR", the first release with it.
        value: one of the switch's values.
        pull: number of the vLLM pull request, None where it was not found.
    """

    release: str
    value: str
    pull: int | None = None


@dataclass(frozen=True)
class Switch:
    """One rule that differs between releases.

    Attributes:
        name: as in `engine.switches`.
        effect: what it changes, one sentence.
        values: value -> what vLLM does then.
        onsets: in order of release; the first is that of `FIRST_RELEASE`.
        concerns: keys of `FEATURES`: what an engine must have, all of it, for the rule to decide anything.
    """

    name: str
    effect: str
    values: Mapping[str, str]
    onsets: tuple[Onset, ...]
    concerns: tuple[str, ...] = ()

    def value_of(self, release: str) -> str:
        """Its value in a release."""
        passed = [o.value for o in self.onsets if release_key(o.release) <= release_key(release)]
        return passed[-1]


def release_key(release: str) -> tuple[int, ...]:
    """A sort key: "0.9" < "0.13"."""
    return tuple(int(part) for part in release.split("."))
