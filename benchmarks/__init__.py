"""``make bench``: this system beside a naive FastAPI + Celery stack, in one run; see ``benchmarks/README.md``."""
