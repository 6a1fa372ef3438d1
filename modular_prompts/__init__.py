"""Modular prompts (MP2): one frozen network, many tasks, each by a mixture of shared prompts."""
