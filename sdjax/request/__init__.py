"""From the arguments of `generate` to a checked request, before anything is compiled or run.

Read `arguments` (what may be given, declared once), `request` (what a call asks for, in one form, and the settings that
make it again), `build` (how it comes about), `prompting` (texts along a run), `image_inputs` and `read_images` (what a
run starts from besides text), `seeds`, `checks` (each argument alone), `stored_settings` (back from a picture's file).
"""
