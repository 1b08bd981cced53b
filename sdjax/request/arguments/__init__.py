"""The arguments of `generate`, each declared once: its default, what a file may hold of it, how flags tell it.

Read `topic` (what is declared, and the class that all topics share), `arguments` (all topics of a call), then the
topics, which have a file each: `prompting`, `sampling`, `guidance`, `adapters` (what pictures wear), `control` (what
steers them), `batch` (seeds, numbers and sizes of the pictures), `monitoring` (how a run is followed), `handoff` (runs
of several parts), `images` (what a run starts from besides text), `size_conditioning` (SDXL's numbers).

A new argument is a field of a topic and a parameter of `generate`; a test holds the two equal. A topic comes in two
states of the same class: as given (`Topic.of`), and checked against a model, in the one form that settings have.
"""
