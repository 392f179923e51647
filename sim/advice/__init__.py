"""Advice that rests on simulated numbers: search of settings, statistics, wording."""
