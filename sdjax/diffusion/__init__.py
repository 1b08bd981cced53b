"""The mathematics of sampling: noise levels, solvers as tables, and the one scan that runs them.

Read in this order: `noise` (what a noise level is), `spacing` (which levels are visited), `prediction` (what
the network's output means), `table` (a solver becomes a matrix), `solvers`, `plan` (from a checkpoint's
scheduler_config.json to that matrix), `scan` (the device side), `guidance`. Nothing here knows a network.
"""
