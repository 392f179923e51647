"""Published results, reproduced: ``python -m sim.published`` prints ours beside theirs."""
