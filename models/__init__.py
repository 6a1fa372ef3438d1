"""Networks: one module per family, wrapped as the `Denoiser` that the processes use."""
