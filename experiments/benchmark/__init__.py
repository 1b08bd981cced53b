"""sdjax against diffusers on one machine: `python -m experiments.benchmark`; see __main__.py."""
