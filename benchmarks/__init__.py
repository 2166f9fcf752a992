"""Measurements, run by hand. Their figures are ratios from one run; nothing here asserts a time."""
