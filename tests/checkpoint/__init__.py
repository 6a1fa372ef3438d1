"""Tests of checkpoint/."""
