"""The VAE on pictures larger than memory: `grid` (how a picture is cut), `tiles` (run piece by piece, exactly)."""
