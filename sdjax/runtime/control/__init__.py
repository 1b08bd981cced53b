"""What steers a U-Net from beside it, as `nn.control.ControlNetwork`s, and the denoiser that runs them together.

Read `controlled` (the U-Net with others beside it), then one kind after the other: `controlnet`, `t2i_adapter`,
`lllite`, `image_prompt`. Which of them a config means is said in `networks`.
"""
