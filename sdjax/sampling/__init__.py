"""From a request to latents.

Read `run` (what the network is told, where the run begins, the scan), `noise` (every Gaussian number and its use),
`trace` (the steps of a run), `preview` and `strip` (steps to look at), `bar` (progress), `lost` (what left all bounds).
"""
