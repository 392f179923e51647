"""Curves of fragmentation, hits and load, stored as text and compared in CI."""
