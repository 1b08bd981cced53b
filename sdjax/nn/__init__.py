"""The networks as flax.linen modules. No files, no devices, no randomness.

Read `parameter`, `layers` (dense, convolution, norms), `convolution` and `winograd` (the same product, cheaper),
`attention`, `resnet`; then `conditioning` (all that a U-Net is told), `unet`, `vae`, `clip`, `clip_vision`, `dpt`
(depth), `tiling` (large pictures), `resize`, and `shapes` (of every parameter, from a config alone).
"""
