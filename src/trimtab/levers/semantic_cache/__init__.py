"""Answers a question from an earlier one that means the same, within the share of wrong answers that its owner accepts.

`question` says what of a request is the question and what is its context; nothing else of the lever is here yet.
"""
