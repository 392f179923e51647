"""Hit rate against pool size for a whole trace, in one pass over its blocks."""
