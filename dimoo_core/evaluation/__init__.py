"""Measuring what the model does."""
