"""One module a model family: `open_family(bundle, backend) -> Segmenter`."""
