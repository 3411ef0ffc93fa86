"""The ladder of levers: one workload, one lever more at each step, and whether each is worth having.

`setup` says what the gateway is told at each step, `figures` what came of it, `climb` runs it, `page` shows it.
"""
