"""More than any network has, and few enough that a trace of them all ends within seconds."""

MOST_LEVELS, MOST_RESNETS, MOST_LAYERS = 8, 16, 256

# Of one call of `generate`: beyond these nothing could be held in memory, or a generator would run for hours.

MOST_PICTURES = 10_000
MOST_SIDE = 16_384  # pixels of a picture's side, and of the sizes that SDXL is told
MOST_PIXELS = 1 << 30  # of all pictures: 4,096 of 512 x 512
MOST_COUNT = (1 << 32) - 1  # of numbers that are folded into a key, and of whole numbers of no other limit
MOST_PASSED = 1 << 34  # numbers that torch's generator passes over before a picture's own: a minute or two
MOST_BLUR = 4096  # pixels
