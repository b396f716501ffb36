"""Kernels that pixelrt replaces or adds: each folder holds a numpy specification beside its fast versions."""
