"""The peers' servers: one script each, run by ``python -m benchmarks.peers.NAME`` in the peer's own environment.

``NAME.txt`` pins that environment (``pip freeze``). A script reads BENCH_MODEL, BENCH_BATCH and BENCH_PORTS, and uses
the same model code as every stack.
"""
