"""Training: the state, one step of it, checkpoints, and the loop that puts them together."""
