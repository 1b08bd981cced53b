"""The networks as flax.linen modules. No files, no devices, no randomness.

Read `parameter` and `linear` (where every kernel is read), `layers` (dense, convolution, norms), `convolution` and
`winograd` (the same product, cheaper); `conditioning` (all that a U-Net is told), `attention`, `resnet`, `unet`;
`denoiser` (what the sampling loop knows of a network); then `vae`, `clip`, `clip_vision`, `dpt` (depth), `tiling`
(large pictures), `resize`, and `shapes` (of every parameter, from a config alone).
"""
