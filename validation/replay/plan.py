"""A user's YAML as something that a real engine can be given: settings, requests, tokens that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.config import Loaded, load_config
from sim.config_workload import to_workload
from sim.engine_settings import EngineSettings
from sim.errors import InputError
from sim.fleet.single import refuse_fleet
from sim.resolve import Resolved, resolve
from validation.logical import LogicalRequest
from workloads.requests import Workload

#: Takes the place of a missing `step_time`, which a replay has no need of.
_NO_STEP_TIME = ("step_time.kind=constant", "step_time.step=1ms")


@dataclass(frozen=True)
class Plan:
    """What is replayed.

    Attributes:
        resolved: the config with every number filled in.
        workload: its requests, on the clock "time".
        has_step_time: whether the config says how long a step takes.
        config_file: as given.
    """

    resolved: Resolved
    workload: Workload
    has_step_time: bool
    config_file: str

    @property
    def settings(self) -> EngineSettings:
        """The engine's settings."""
        return self.resolved.engine

    def is_rejected(self, i: int) -> bool:
        """Whether vLLM's front end refuses request i: its prompt leaves no room for a token."""
        return int(self.workload.prompt_len[i]) >= self.settings.max_model_len


def load_plan(
    config: str | Path,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    vocabulary: int | None = None,
) -> Plan:
    """Read a config for a replay.

    Args:
        config: path of the YAML.
        overrides: `key=value` texts.
        seed: instead of the config's, or None.
        vocabulary: token ids that the model knows; the workload's are kept below this. None: as the config.

    Raises:
        InputError: what `sim run` would say of it, and what no real engine can be given.
    """
    loaded = load_config(config, overrides, seed)
    more = [*overrides, *_extra(loaded, vocabulary)]
    resolved = resolve(load_config(config, more, seed))
    refuse_fleet(resolved, str(config))
    workload = to_workload(resolved.spec, resolved.seed, resolved.folder)
    if workload.clock != "time":
        raise InputError(
            "the workload is in logical time: a replay needs arrivals in seconds",
            str(config),
            hint="compare it with `validation record` and `validation diff`",
        )
    if vocabulary is not None and len(workload.tokens) and int(workload.tokens.max()) >= vocabulary:
        raise InputError(
            f"the workload has token id {int(workload.tokens.max())}; the model knows ids below {vocabulary}",
            str(config),
        )
    return Plan(resolved, workload, loaded.config.step_time is not None, Path(config).name)


def _extra(loaded: Loaded, vocabulary: int | None) -> list[str]:
    """Overrides that make a user's config one of a replay."""
    extra: list[str] = []
    config = loaded.config
    if config.step_time is None and (config.model is None or config.gpu is None):
        extra += _NO_STEP_TIME
    given = config.workload.vocab_size
    if vocabulary is not None and (given is None or given > vocabulary):
        extra.append(f"workload.vocab_size={vocabulary}")
    return extra


def salt_text(salt: int) -> str | None:
    """The cache_salt string that stands for a workload's salt id."""
    return f"salt-{salt}" if salt else None


def logical_request(workload: Workload, i: int, arrival_step: int = 0) -> LogicalRequest:
    """Request i with all its token ids."""
    return LogicalRequest(
        request_id=workload.request_id(i),
        arrival_step=arrival_step,
        prompt_token_ids=tuple(workload.prompt_tokens(i).tolist()),
        output_token_ids=tuple(workload.output_tokens(i).tolist()),
        priority=int(workload.priority[i]),
        cache_salt=salt_text(int(workload.salt[i])),
        max_tokens=int(workload.max_tokens[i]),
    )
