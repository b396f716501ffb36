"""Golden outputs: what a bundle's graphs give for a picture and a few questions, kept in the bundle.

`make.py` writes them at export with ONNX Runtime, `check.py` runs the same questions on any backend and names the first
stage that differs. Both walk through a family's graphs by the same code (`pixellm.py`, `psalm.py`).
"""
