"""A checkpoint in memory: what it is, without running it.

Read `text_encoder` (an encoder with its tokenizer, and how texts are encoded), `image_towers` (what looks at pictures),
`families` and `tasks` (what differs between models, and what they are for), `spec` and `networks` (what a model is, and
one that can run), `open` (from configs to these, checked), `builtin` (the models that come with sdjax), `finite` (what
is run once more in float32).
"""
