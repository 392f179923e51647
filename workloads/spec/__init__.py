"""Models of the `workload:` section of a config (pydantic; nothing heavier is imported here).

The numbers' units, their defaults and what they mean stand in each field; docs and the JSON schema are
generated from them.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from workloads.spec.base import Model
from workloads.spec.clients import Agents, AnyClient, Batch, Chat, Code, Mix, Rag, Random, Sampling, Trace

#: The `workload:` section: `kind` says which model applies.
WorkloadSpec = Annotated[AnyClient, Field(discriminator="kind")]

#: kind -> model, in the order of the docs.
KINDS: dict[str, type[Model]] = {
    "chat": Chat,
    "agents": Agents,
    "rag": Rag,
    "code": Code,
    "batch": Batch,
    "sampling": Sampling,
    "random": Random,
    "mix": Mix,
    "trace": Trace,
}


def parse_spec(data: Any) -> AnyClient:
    """Validate plain data (as read from YAML or JSON) into a workload model.

    Raises:
        pydantic.ValidationError: with every problem at once.
    """
    adapter: TypeAdapter[AnyClient] = TypeAdapter(WorkloadSpec)
    return adapter.validate_python(data)


__all__ = [
    "KINDS",
    "Agents",
    "AnyClient",
    "Batch",
    "Chat",
    "Code",
    "Mix",
    "Rag",
    "Random",
    "Sampling",
    "Trace",
    "WorkloadSpec",
    "parse_spec",
]
