"""The command ``services``.

In come command lines, read by click (``main``); each command is a function with its options in a module of its topic.
Out go text on standard output, errors with their remedy on standard error, and exit codes (0, 1, 2, 3).
``new_plugin/`` is the plugin that ``services new`` copies.
"""
