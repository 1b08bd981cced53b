"""Methods: what of a model learns, and how it is kept: one file each.

Read `method` first: what a method says. Then `full`, where a network's own parameters learn, chosen by `rules`; and
those in which something small beside them does: beside the kernels that `layers` names, by what they all share
(`beside`), `lora`, `dora`, `loha`, `lokr`; in captions, `textual_inversion`; before keys and values, `hypernetwork`.
"""
