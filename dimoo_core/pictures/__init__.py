"""Pixels; no network."""
