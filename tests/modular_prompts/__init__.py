"""Tests of `modular_prompts`."""
