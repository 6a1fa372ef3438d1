"""Diffusion processes over text: what is noised, the loss, the bound, the sampler."""
