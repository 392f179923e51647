"""Clients: SimPy processes that send requests, one module each.

`STARTERS[kind]` names the module whose `start(emitter, spec)` puts the client's processes into its
environment.
"""

from __future__ import annotations

#: kind -> module.
STARTERS: dict[str, str] = {
    "chat": "workloads.clients.chat",
    "agents": "workloads.clients.agents",
    "rag": "workloads.clients.rag",
    "code": "workloads.clients.code",
    "batch": "workloads.clients.batch",
    "sampling": "workloads.clients.sampling",
    "random": "workloads.clients.independent",
}
