"""The depth estimator: `bit` (its convolutional backbone), `depth` (the transformer and what follows)."""
