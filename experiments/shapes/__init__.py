"""A small world of coloured shapes: its pictures and captions, its scorer, and a model's training on it."""
