"""From the arguments of `generate` to a checked request, before anything is compiled or run.

Read `request` (what a call asks for, in one form), `build` (how it comes about), `prompting` (texts along a run),
`image_inputs` and `read_images` (what a run starts from besides text), `size_conditioning`, `seeds`, `checks` (each
argument alone), `settings` (the way back: what makes the same pictures again).
"""
