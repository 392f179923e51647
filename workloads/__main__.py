"""`python -m workloads`: describe traffic, convert it between formats."""

from __future__ import annotations

from workloads.cli import main

if __name__ == "__main__":
    main(prog_name="python -m workloads")
