"""The mathematics of sampling: noise levels, solvers as tables, and the one scan that runs them.

Read in this order: `noise` (what a noise level is), `spacing` (which levels are visited), `prediction` (what
the network's output means), `table` (a solver becomes a matrix), `solvers`, `plan` (from a checkpoint's
scheduler_config.json to that matrix), `row` and `scan` (the device side), `guiders` (one prediction of a network's
answers with and without a prompt), `guidance_schedule` and `guidance` (how strongly, by row and picture). Nothing here
knows a network.
"""
