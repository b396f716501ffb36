"""`pixelrt eval`: bundles on published datasets, by the measures of the papers that use them. See docs/evaluation.md.

One module a dataset reads it, asks about it and sums up; measures.py defines the measures, journal.py keeps what
was answered, report.py makes the tables.
"""
