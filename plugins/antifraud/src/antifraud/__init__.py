"""Invalid traffic (IVT) in advertising: one ad event in, a score, a verdict and its reasons out.

The map: ``schema`` (what comes in and goes out), ``service`` (the four verbs), ``useragent`` and ``ranges`` (what
lists and parsers say), ``rules`` (parameter checks), ``features`` (what the model sees, in training and serving
alike), ``scoring`` (from probability and findings to a verdict), ``reasons`` (every reason code).
"""
