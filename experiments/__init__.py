"""Commands that use sdjax: make pictures, train the shapes model, measure; run each with `python -m`."""
