"""Networks. Each module holds one family behind `process.Denoiser`, with all of its quirks inside."""
