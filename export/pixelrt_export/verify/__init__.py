"""Is a bundle what its checkpoint computes? Compared with the torch reference, never with its own graphs."""
