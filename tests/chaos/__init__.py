"""Real processes under load, killed, stopped and cut off by a seeded schedule; then an audit of every accepted job.

The map: ``service`` (what runs) → ``stack`` (the processes) → ``load`` (the clients) → ``faults`` (what goes wrong) →
``audit`` (what became of every job) → ``campaign`` (all of it together, ``python -m tests.chaos``).
"""
