"""Pictures before and after the networks: read, masked, enlarged, prepared, shown.

Read `pixels` (uint8 and [-1, 1]), `read` (a picture from anywhere), `masks`, `grow` (room around a picture), `depth`,
`processor` (what is done to a picture before a network looks at it), then `sheet` and `show` (several pictures as one).
"""
