"""Training: settings, steps, learning rates, evaluations, saved states and logs."""
