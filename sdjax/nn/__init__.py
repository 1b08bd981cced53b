"""The networks as flax.linen modules: CLIP's text encoder, the U-Net, the VAE. No files, no devices, no randomness."""
