"""Evals: suites of items with the answers that are right, and the scorers that compare."""
