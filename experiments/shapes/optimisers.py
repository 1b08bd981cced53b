"""The optimisers that the shapes models were trained with, by their names in the flags."""

from sdjax.train.optimisers import Optimiser

OPTIMISERS = {"adamw": Optimiser("adamw", b2=0.99, decay="all"), "muon": Optimiser("muon")}
