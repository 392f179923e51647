"""Runs of workloads on disk, in memory that does not grow with them."""
