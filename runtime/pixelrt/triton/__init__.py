"""`pixelrt triton`: a bundle as a model repository of Triton Inference Server.

    REPO/NAME/            the front model: Python backend, owns the token loop (front.py)
    REPO/encoder/         leaves, on Triton's ONNX Runtime or TensorRT backend; the front model calls them (leaf.py)
    REPO/pixel_decoder/
    REPO/probe.py, sample.json, sample.png, client.py, README.md, repository.json

Triton gathers, queues and distributes; nothing here does. repository.py writes, config.py says what Triton must know.
"""
