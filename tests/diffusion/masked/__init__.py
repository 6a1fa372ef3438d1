"""Tests of diffusion/masked/."""
