"""The training program, `python -m experiments.train`: `__main__` is what it does, in order.

`options` are its flags; `recipes` what each --method stands for; `material` the data; `memory` what --dry_run says;
`outcome` what a run leaves, and pictures of it on the way.
"""
