"""Engines from a bundle, on the machine that will run them; with TensorRT-RTX also ahead of time, without a GPU."""
