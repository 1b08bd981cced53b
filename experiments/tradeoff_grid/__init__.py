"""The parts of `experiments.tradeoff`: cells and their plans, the folder, the program, the figures, the page."""
