"""`pixelrt serve`: a bundle behind HTTP, and a page to try it.

    connection -> guard -> app -> segment | openai -> asking -> worker -> a family

One thread runs the model; see worker.py. FastAPI and its kin are imported below this package alone.
"""
