"""One model for each kind of traffic."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from workloads.spec.arrivals import Arrivals, ClosedLoopArrivals
from workloads.spec.base import Count, Model, NonNegative, Tokens, TokensOrZero, VocabSize, key
from workloads.spec.lengths import JointLengths, Length, PositiveLength, Time
from workloads.units import Duration


class Client(Model):
    """Keys of every synthetic kind."""

    kind: str = key(..., "Kind of traffic.")
    priority: int = key(
        0, "Priority of every request; lower is served first (policy `priority`).", ge=-(2**31), lt=2**31
    )
    cache_salt: str | None = key(
        None, "Requests share cached blocks only with requests of the same salt; null: none."
    )
    max_tokens: Tokens | None = key(
        None,
        "Cap on generated tokens. Outputs are cut to it, and those that are shorter stop by an end token; "
        "null: every request stops by length.",
        "tokens",
    )
    encoder_len: PositiveLength | None = key(
        None,
        "Length of each request's encoder input, for models with cross attention; null: the longest that the"
        " model takes, as Whisper always does.",
        "tokens",
    )
    vocab_size: VocabSize | None = key(
        None,
        "Token ids are below this; null: 128000. In a mixture: a key of the mixture, not of its clients.",
        "tokens",
    )


class Sessions(Client):
    """Keys of the kinds that are made of sessions: later requests follow the end of the one before."""

    arrivals: Arrivals = key(..., "When sessions begin.")
    duration: Duration | None = key(None, "No session begins at or after this time.", "duration")
    num_sessions: Count | None = key(None, "At most so many sessions begin.")
    max_context: Tokens | None = key(
        None,
        "A session ends before the request whose prompt and output would exceed this; null: no limit.",
        "tokens",
    )

    @model_validator(mode="after")
    def _ends(self) -> Self:
        _check_end(self.arrivals, self.duration, self.num_sessions, "num_sessions")
        return self


class Requests(Client):
    """Keys of the kinds that are made of independent requests."""

    arrivals: Arrivals = key(..., "When requests arrive.")
    duration: Duration | None = key(None, "No request arrives at or after this time.", "duration")
    num_requests: Count | None = key(None, "At most so many requests arrive.")

    @model_validator(mode="after")
    def _ends(self) -> Self:
        _check_end(self.arrivals, self.duration, self.num_requests, "num_requests")
        return self


def _check_end(arrivals: object, duration: int | None, count: int | None, name: str) -> None:
    if isinstance(arrivals, ClosedLoopArrivals):
        if count is None:
            raise ValueError(f"closed_loop arrivals need {name}: how long they last depends on the engine")
        if duration is not None:
            raise ValueError(f"duration has no meaning with closed_loop arrivals; use {name} alone")
    elif duration is None and count is None:
        raise ValueError(f"give duration, {name} or both, or the traffic never ends")


class Chat(Sessions):
    """Multi-turn chat: every prompt is the system prompt and the whole conversation so far."""

    kind: Literal["chat"] = key("chat", "Multi-turn chat.")
    personas: Count = key(1, "Different system prompts; each session has one of them.")
    persona_zipf: NonNegative = key(0.0, "Zipf exponent of the personas' popularity; 0: all alike.")
    system_len: Length = key(200, "Length of a system prompt; 0: none.", "tokens", validate_default=True)
    user_len: PositiveLength = key(
        {"kind": "lognormal", "mean": 120.0, "cv": 1.2},
        "Length of a user's message.",
        "tokens",
        validate_default=True,
    )
    output_len: PositiveLength = key(
        {"kind": "lognormal", "mean": 250.0, "cv": 0.8},
        "Length of an answer.",
        "tokens",
        validate_default=True,
    )
    turns: Annotated[float, Field(ge=1)] = key(4.0, "Mean number of turns of a session (geometric).")
    max_turns: Count = key(50, "Longer sessions are cut to this.")
    think_time: Time = key(
        {"kind": "lognormal", "mean": "20s", "cv": 1.0},
        "From the end of an answer to the next message.",
        "duration",
        validate_default=True,
    )


class Agents(Sessions):
    """Agents: a long prefix (system prompt, tool schemas) shared by an agent's runs, then tool loops."""

    kind: Literal["agents"] = key("agents", "Agents with tool loops.")
    agents: Count = key(3, "Different agents, each with a prefix of its own.")
    agent_zipf: NonNegative = key(0.0, "Zipf exponent of the agents' popularity; 0: all alike.")
    prefix_len: PositiveLength = key(
        4000, "System prompt and tool schemas of an agent.", "tokens", validate_default=True
    )
    task_len: PositiveLength = key(
        {"kind": "lognormal", "mean": 300.0, "cv": 1.0}, "The task.", "tokens", validate_default=True
    )
    tool_calls: NonNegative = key(6.0, "Mean number of tool calls before the final answer (geometric).")
    max_tool_calls: Annotated[int, Field(ge=0)] = key(40, "Longer loops are cut to this.")
    call_len: PositiveLength = key(
        {"kind": "lognormal", "mean": 80.0, "cv": 0.6},
        "Output that calls a tool.",
        "tokens",
        validate_default=True,
    )
    result_len: PositiveLength = key(
        {"kind": "lognormal", "mean": 600.0, "cv": 1.5}, "Result of a tool.", "tokens", validate_default=True
    )
    final_len: PositiveLength = key(
        {"kind": "lognormal", "mean": 350.0, "cv": 0.7}, "Final answer.", "tokens", validate_default=True
    )
    tool_latency: Time = key(
        {"kind": "lognormal", "mean": "1500ms", "cv": 1.5},
        "From the end of a call to the next request.",
        "duration",
        validate_default=True,
    )


class Rag(Requests):
    """Retrieval-augmented questions over one corpus: instructions, k chunks, the question."""

    kind: Literal["rag"] = key("rag", "Retrieval over a shared corpus.")
    documents: Count = key(1000, "Documents in the corpus.")
    chunks_per_document: Count = key(8, "Chunks of a document.")
    zipf: NonNegative = key(1.0, "Zipf exponent of the documents' popularity; 0: all alike.")
    chunks: Annotated[int, Field(ge=1, le=10_000)] = key(5, "Chunks in a prompt, all different.")
    order: Literal["retrieval", "document"] = key(
        "retrieval",
        "Order of the chunks: as drawn, or by document and place in it (more prefixes in common).",
    )
    system_len: Length = key(150, "Instructions before the chunks; 0: none.", "tokens", validate_default=True)
    chunk_len: PositiveLength = key(
        {"kind": "uniform", "low": 200, "high": 400}, "Length of a chunk.", "tokens", validate_default=True
    )
    question_len: PositiveLength = key(
        {"kind": "lognormal", "mean": 40.0, "cv": 0.7}, "The question.", "tokens", validate_default=True
    )
    output_len: PositiveLength = key(
        {"kind": "lognormal", "mean": 200.0, "cv": 0.7}, "The answer.", "tokens", validate_default=True
    )

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.chunks > self.documents * self.chunks_per_document:
            raise ValueError(f"chunks ({self.chunks}) is more than the corpus holds")
        return self


class Code(Sessions):
    """Code completion: the prompt is the repository's context and the file up to a cursor that moves."""

    kind: Literal["code"] = key("code", "Code completion.")
    repositories: Count = key(20, "Repositories; sessions in one share its context.")
    repository_zipf: NonNegative = key(1.0, "Zipf exponent of the repositories' popularity; 0: all alike.")
    context_len: Length = key(
        {"kind": "lognormal", "mean": 1500.0, "cv": 0.5},
        "Context of a repository.",
        "tokens",
        validate_default=True,
    )
    file_len: Length = key(
        {"kind": "lognormal", "mean": 1200.0, "cv": 0.8},
        "The file when it is opened.",
        "tokens",
        validate_default=True,
    )
    completions: Annotated[float, Field(ge=1)] = key(
        15.0, "Mean number of completions of a session (geometric)."
    )
    max_completions: Count = key(200, "Longer sessions are cut to this.")
    typed_len: Length = key(
        {"kind": "gamma", "mean": 8.0, "cv": 1.0},
        "Tokens typed between completions.",
        "tokens",
        validate_default=True,
    )
    output_len: PositiveLength = key(
        {"kind": "lognormal", "mean": 30.0, "cv": 0.8}, "A completion.", "tokens", validate_default=True
    )
    accept: Annotated[float, Field(ge=0, le=1)] = key(
        0.3, "Probability that a completion is kept in the file."
    )
    jump: Annotated[float, Field(ge=0, le=1)] = key(
        0.15, "Probability that the cursor jumps to another place of the file before the next completion."
    )
    suffix_len: TokensOrZero = key(
        0, "Tokens after the cursor that follow the text before it in the prompt.", "tokens"
    )
    think_time: Time = key(
        {"kind": "lognormal", "mean": "3s", "cv": 1.2},
        "From the end of a completion to the next request.",
        "duration",
        validate_default=True,
    )


class Batch(Client):
    """Offline batch: everything at once, or in waves."""

    kind: Literal["batch"] = key("batch", "Offline batch.")
    num_requests: Count = key(..., "Requests in all.")
    waves: Count = key(1, "The requests are split evenly over so many waves.")
    wave_interval: Duration = key("60s", "Time between waves.", "duration", validate_default=True)
    few_shot_variants: Count = key(1, "Different few-shot prefixes, used in turn.")
    few_shot_len: Length = key(
        0, "Prefix of examples that requests share; 0: none.", "tokens", validate_default=True
    )
    prompt_len: PositiveLength = key(
        {"kind": "lognormal", "mean": 500.0, "cv": 0.8},
        "Each request's own part of the prompt.",
        "tokens",
        validate_default=True,
    )
    output_len: PositiveLength = key(
        {"kind": "lognormal", "mean": 150.0, "cv": 0.8}, "The output.", "tokens", validate_default=True
    )


class Sampling(Requests):
    """Parallel sampling: a prompt arrives as n requests at once, as vLLM's V1 engine fans out `n`."""

    kind: Literal["sampling"] = key("sampling", "Parallel sampling (n > 1).")
    n: Annotated[int, Field(ge=1, le=10_000)] = key(4, "Samples of each prompt.")
    num_requests: Count | None = key(None, "At most so many prompts arrive (each is n requests).")
    system_len: Length = key(0, "Prefix that all prompts share; 0: none.", "tokens", validate_default=True)
    prompt_len: PositiveLength = key(
        {"kind": "lognormal", "mean": 400.0, "cv": 0.8},
        "Each prompt's own part.",
        "tokens",
        validate_default=True,
    )
    output_len: PositiveLength = key(
        {"kind": "lognormal", "mean": 300.0, "cv": 0.8},
        "Output of one sample, drawn for each.",
        "tokens",
        validate_default=True,
    )


class Random(Requests):
    """Independent requests, as `vllm bench serve --dataset-name random` sends them."""

    kind: Literal["random"] = key("random", "Independent requests.")
    prefix_len: TokensOrZero = key(0, "Prefix that all requests share, in front of `prompt_len`.", "tokens")
    prompt_len: PositiveLength = key(
        1024, "Each request's own part of the prompt.", "tokens", validate_default=True
    )
    output_len: PositiveLength = key(128, "The output.", "tokens", validate_default=True)
    lengths: JointLengths | None = key(
        None,
        "Prompt and output lengths drawn together from a file, in place of `prompt_len` and `output_len`.",
    )


class Trace(Model):
    """Requests read from a file."""

    kind: Literal["trace"] = key("trace", "A trace file.")
    path: str = key(
        ..., "The file; a relative path is looked for beside the config, then in the working folder."
    )
    format: Literal["auto", "mooncake", "azure", "burstgpt", "vllm", "logical", "native"] = key(
        "auto", "Format of the file; `auto` looks at its first line."
    )
    hash_block_size: Tokens = key(512, "Tokens that one hash id stands for (format mooncake).", "tokens")
    time_scale: Annotated[float, Field(gt=0, le=1e9)] = key(
        1.0, "Arrival times are multiplied by this: 0.5 sends the trace at twice its speed."
    )
    max_requests: Count | None = key(None, "Only the first so many requests; null: all.")
    duration: Duration | None = key(
        None, "Only requests that arrive (unscaled) before this time; null: all.", "duration"
    )
    output_len: Tokens | None = key(
        None,
        "Output of the requests for which the file gives none (format vllm); null: that is an error.",
        "tokens",
    )
    model: str | None = key(None, "Only rows of this model (format burstgpt); null: all.")
    log_type: str | None = key(None, "Only rows of this log type (format burstgpt); null: all.")
    vocab_size: VocabSize | None = key(
        None,
        "Token ids are below this; null: 128000. In a mixture: a key of the mixture, not of its clients.",
        "tokens",
    )


class MixPart(Model):
    """One client of a mixture."""

    name: str = key(
        ...,
        "Name of the client: its random numbers and tokens depend on it and on nothing else.",
        min_length=1,
    )
    weight: float = key(
        1.0, "Multiplies the client's arrival rates (or its closed-loop clients).", gt=0, le=1e6
    )
    start: Duration = key("0s", "When the client begins.", "duration", validate_default=True)
    client: Annotated[
        Chat | Agents | Rag | Code | Batch | Sampling | Random | Trace, Field(discriminator="kind")
    ] = key(..., "What it sends: any kind but `mix`.")

    @model_validator(mode="after")
    def _has_a_rate(self) -> Self:
        if isinstance(self.client, Batch) and self.weight != 1.0:
            raise ValueError("a batch has no rate; leave weight out and set num_requests")
        return self


class Mix(Model):
    """Several clients side by side."""

    kind: Literal["mix"] = key("mix", "Several clients side by side.")
    clients: list[MixPart] = key(..., "The clients.", min_length=1)
    vocab_size: VocabSize | None = key(None, "Token ids are below this; null: 128000.", "tokens")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [part.name for part in self.clients]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two clients are called {name!r}; their names must differ")
        for part in self.clients:
            if part.client.vocab_size is not None:
                raise ValueError(f"client {part.name!r} has a vocab_size; set it once, on the mixture")
        return self


AnyClient = Chat | Agents | Rag | Code | Batch | Sampling | Random | Trace | Mix

__all__ = [
    "Agents",
    "AnyClient",
    "Batch",
    "Chat",
    "Client",
    "Code",
    "Mix",
    "MixPart",
    "Rag",
    "Random",
    "Requests",
    "Sampling",
    "Sessions",
    "Trace",
]
