"""What surrounds the training loop: settings, saved states, logs, learning rates."""
