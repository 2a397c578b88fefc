"""The command ``services``.

In come command lines (``main``); each command is a function here or in a module of its name.
Out go text on standard output, errors with their mend on standard error, and exit codes (0, 1, 2, 3).
``new_plugin/`` is the plugin that ``services new`` copies.
"""
