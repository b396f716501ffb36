"""The correctness reference: PixelLM in plain torch, with the names of the released checkpoints."""
