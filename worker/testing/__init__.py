"""For authors of plugins: run a service without Redis, and check that it keeps the contract.

In comes an installed plugin. Out go its outputs (``run_inline``) or a list of checks (``check_plugin``), among them
whether the plugin's wheel has every file that ``load`` opens (``wheel``, ``opened``).
"""

from worker.testing.checks import (
    Check,
    InlineFiles,
    Problem,
    agree,
    check_plugin,
    example_of,
    examples_of,
    load,
    run_inline,
)

__all__ = [
    "Check",
    "InlineFiles",
    "Problem",
    "agree",
    "check_plugin",
    "example_of",
    "examples_of",
    "load",
    "run_inline",
]
