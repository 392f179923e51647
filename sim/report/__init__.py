"""How results are shown: text for the terminal, plots for the run folder."""
