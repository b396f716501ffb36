"""From a PixelLM or PSALM checkpoint to a bundle: ONNX graphs, weights, token table, tokenizer, manifest."""
