"""What every room stands on; nothing here imports anything of sdjax but its neighbours here.

Read `errors` (how a message names the nearest known word), `tree` (parameters as nested dicts), `jit` (a compiled
program), `keys` (what a seed means), `files` (written whole or not at all), `json_fields` (JSON from strangers, read by
type), `devices`; then `short`, `notice`, `hints`, `numbers` and `limits` as they come up.
"""
