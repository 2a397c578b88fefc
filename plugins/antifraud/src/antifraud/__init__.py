"""Invalid traffic (IVT) in advertising: one ad event in, a score, a verdict and its reasons out.

The map: ``schema`` (input and output), ``service`` (the four verbs), ``useragent`` and ``ranges`` (the
findings of lists and parsers), ``rules`` (parameter checks), ``features`` (the model's inputs, in training and serving
alike), ``scoring`` (from probability and findings to a verdict), ``reasons`` (every reason code).
"""
