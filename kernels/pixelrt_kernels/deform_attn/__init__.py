"""Multi-scale deformable attention: sampling and weighted sum."""
