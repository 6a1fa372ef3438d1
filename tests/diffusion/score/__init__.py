"""Tests of diffusion/score/."""
