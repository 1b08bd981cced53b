"""More than any network has, and few enough that a trace of them all ends within seconds."""

MOST_LEVELS, MOST_RESNETS, MOST_LAYERS = 8, 16, 256
