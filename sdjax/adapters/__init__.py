"""Adapters: files that change a model: LoRA and its relatives, textual inversions, hypernetworks.

Read `kinds.delta` (what a kind does to a parameter), `adapter` (a file of them), `names` (the dialects in which files
name modules), `read` (a file, a folder or a Hub id), then `merge` (into the parameters) and `worn` (beside them, each
picture its own).
"""
