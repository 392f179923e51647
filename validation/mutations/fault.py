"""What a deliberate fault is."""

from __future__ import annotations

from dataclasses import dataclass

TEST_FILE = "tests/validation/test_kernel_rules.py"


@dataclass(frozen=True)
class Fault:
    """One deliberate fault.

    Attributes:
        name: short name, also that of its recording.
        rule: what vLLM does.
        broken: what the faulty kernel does in its place.
        file: the file that is changed, relative to the project.
        old, new: text that is replaced, and by what.
        times: how often `old` stands in the file; all are replaced.
        recording: folder below tests/recorded_vllm whose log the fault changes; empty: one of its own.
    """

    name: str
    rule: str
    broken: str
    file: str
    old: str
    new: str
    times: int = 1
    recording: str = ""

    @property
    def test(self) -> str:
        """pytest's name of the test that catches the fault."""
        return f"{TEST_FILE}::test_rule[{self.name}]"

    @property
    def folder(self) -> str:
        """Where its recording lies, below tests/recorded_vllm."""
        return self.recording or f"mutations/{self.name}"
