"""Fewer bits a weight: what is stored, how it is rounded, and what pictures tell about it."""
