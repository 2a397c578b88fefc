"""``python -m tests.kit.run_code CODE``: a script in a process of its own, in an installation that a test has made."""

import sys

exec(sys.argv[1])
