"""A user's YAML: its model and its reader, with every problem told at once and with its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from sim.config_baseline import BaselineSection
from sim.config_engine import EngineConfig
from sim.config_explain import validate_model
from sim.config_step_time import StepTimeConfig
from sim.config_types import Strict, key
from sim.config_workload import Duration, WorkloadSpec
from sim.config_yaml import (
    NO_FILE,
    Document,
    Place,
    Problem,
    apply_overrides,
    read_yaml,
    to_input_errors,
)
from sim.errors import InputError, did_you_mean, raise_all
from sim.fleet.config import MAX_REPLICAS, RouterKey
from sim.gpus import Gpu, find_gpu, gpu_names
from sim.models import find_model, is_path, known_name, locate, model_names

MAX_SEED = 2**63 - 1


class RunSection(Strict):
    """How long to simulate."""

    until: Duration | None = key(
        None, "Stop at this simulated time; null: when the workload is finished.", "duration"
    )
    warmup: Duration = key(
        "0s", "Time-weighted statistics, latencies and throughput leave out this first part.", "duration"
    )


class OutputSection(Strict):
    """What is written to the run folder."""

    sample_period: Duration | Literal["auto"] = key(
        "auto",
        "Simulated time between rows of steps.parquet. `auto`: about 2000 rows over the workload's arrivals"
        " (1s if they all come at once).",
        "duration",
    )
    every_step: bool = key(False, "One row of steps.parquet for every engine step.")
    events: bool = key(False, "Write events.parquet: blocks stored and removed, preemptions.")
    plots: bool = key(True, "Draw the plots as PNG and SVG.")


class RunConfig(Strict):
    """A simulation: the engine, what it runs on, and what arrives."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)] | None = key(
        None, "Name of the run and of its folder; null: the file's name."
    )
    description: str | None = key(None, "What the config is for; shown in results.")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = key(0, "Seed of everything random in the workload.")
    model: str | None = key(
        None,
        "The model: a known name, or the path of a Hugging Face config.json or its folder, of a known family"
        " (docs/sizing.md). Gives KV-cache groups, memory sizes and the roofline.",
    )
    gpu: str | Gpu | None = key(
        None,
        "The GPU: a known name, or a section with its numbers. Gives the pool's size, vLLM's default batch"
        " limits and the roofline.",
    )
    engine: EngineConfig = key(EngineConfig, "vLLM's arguments.")
    step_time: StepTimeConfig | None = key(
        None, "How long an engine step takes; null: `roofline`, which needs `model` and `gpu`."
    )
    replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = key(
        1, "Engines like this one, each with its own pool, on one clock behind a router.", "engines"
    )
    router: RouterKey | None = key(
        None,
        "How requests are sent to the replicas: a section, or the name of its kind; null: `round_robin`."
        " Without meaning for one replica.",
    )
    workload: WorkloadSpec = key(..., "What arrives.")
    run: RunSection = key(RunSection, "When to stop, and the warm-up.")
    output: OutputSection = key(OutputSection, "What is recorded, written and drawn.")
    baseline: BaselineSection | None = key(
        None, "Rows and tolerances of the curves that `baseline update` stores and `check` compares."
    )

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: str | None) -> str | None:
        found = None if value is None else locate(value)
        if found is not None and not is_path(found) and find_model(found) is None:
            known = ", ".join(model_names())
            raise ValueError(
                _unknown("model", found, model_names(), f"known: {known}; or a path to config.json")
            )
        return value

    @field_validator("gpu")
    @classmethod
    def _known_gpu(cls, value: str | Gpu | None) -> str | Gpu | None:
        if isinstance(value, str) and find_gpu(value) is None:
            known = ", ".join(gpu_names())
            raise ValueError(_unknown("gpu", value, gpu_names(), f"known: {known}; or a section of numbers"))
        return value


_HINT = "\n"


def _unknown(what: str, value: str, names: Sequence[str], known: str) -> str:
    """A validator's message; the part after the line break becomes the hint."""
    near = did_you_mean(value, names)
    return f"unknown {what} '{value}'{_HINT}{near or known}"


@dataclass(frozen=True)
class Loaded:
    """A config that passed its checks, with the places of its keys.

    Attributes:
        config: the validated model.
        document: the file's data and places.
        folder: the file's folder, where relative paths are looked for first.
        name: `config.name` or the file's name.
    """

    config: RunConfig
    document: Document
    folder: Path
    name: str


Edit = Callable[[Document], None]


def _document(path: str | Path) -> Document:
    """The file's content; a model's name in its place is told from a file that is missing."""
    if not Path(path).exists() and known_name(str(path)) is not None:
        hint = f"`sim run` and `sim size` take it with --model {path}"
        raise InputError("this is a model's name, not a config file", str(path), hint=hint)
    return read_yaml(path)


def load_config(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    edits: Sequence[Edit] = (),
) -> Loaded:
    """Read a config, apply `--set key=value` overrides and `--seed`, and check it.

    Args:
        path: of the YAML file; None: an empty config, for `edits` to fill.
        overrides: `key=value` texts.
        seed: in place of the config's.
        edits: changes to the document before the overrides, such as those of vLLM's options.

    Raises:
        InputError: the file can't be read, or its problems, all at once, each with file:line:column.
    """
    document = Document(NO_FILE, {}) if path is None else _document(path)
    if "axes" in document.data and "workload" not in document.data:
        place = document.place(("axes",), at_key=True)
        raise InputError(
            "this is a sweep, not the config of one run",
            str(path),
            place.line,
            place.column,
            f"python -m sim sweep {path}",
        )
    for edit in edits:
        edit(document)
    apply_overrides(document, overrides)
    if seed is not None:
        document.data["seed"] = seed
        document.keys["seed",] = document.values["seed",] = Place(None, None, "--seed")
    if path is None:
        return check_document(document, Path(), _folder_name(str(document.data.get("model") or "run")))
    return check_document(document, Path(path).parent, name_of(path))


def name_of(path: str | Path) -> str:
    """The name that a file gives to its run: without ending, and fit for a folder."""
    stem = Path(path).name
    for ending in (".yaml", ".yml"):
        stem = stem.removesuffix(ending)
    return _folder_name(stem)


def check_document(document: Document, folder: Path, name: str) -> Loaded:
    """Check a config that has been read.

    Args:
        document: data and places.
        folder: where relative paths are looked for first.
        name: of the run, if the config gives none.

    Raises:
        InputError: its problems, all at once.
    """
    config, problems = validate_model(RunConfig, document)
    if config is None:
        raise_all(to_input_errors([_split_hint(p) for p in problems], document))
        raise AssertionError("a failed validation has problems")
    return Loaded(config, document, folder, config.name or name)


def _split_hint(p: Problem) -> Problem:
    message, _, hint = p.message.partition(_HINT)
    return Problem(p.path, message, hint or p.hint)


def _folder_name(stem: str) -> str:
    clean = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem).strip("-._")
    return clean or "run"
