"""Answers to similar questions, kept for all workers by one process of ours.

One process, because vectors, models and what was learned are large and slow to come by: workers share them, embedding
stays off their event loops, and the workers stay small. A worker that cannot reach it goes
without.
"""
