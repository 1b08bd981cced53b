"""What is compiled, and where it runs.

Read `programs` (the pure functions that a picture goes through), `denoisers` (the networks that they run),
`spread` (on many devices), then `signature`, `exported` and `compilation_cache` (programs compiled ahead of time).
"""
