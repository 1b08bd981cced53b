"""What is compiled, and where it runs.

Read `programs` (the pure functions that a picture goes through), `denoisers` (the networks that they run), `executor`
(what runs a program, and what it has to know of it), `spread` (on many devices), then `signature`, `exported` and
`compilation_cache` (programs compiled ahead of time).
"""
