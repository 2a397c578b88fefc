"""Tells happy texts from sad ones."""
