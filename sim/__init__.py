"""kvpool: a discrete-event simulator of the KV-cache block pool of vLLM V1."""

__version__ = "0.1.0"
