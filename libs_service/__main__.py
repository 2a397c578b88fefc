"""The command ``services``, also as ``python -m libs_service``."""

from __future__ import annotations

from libs_service.names import import_ours


def main() -> None:
    """Run it."""
    import_ours("worker.cli.main").main()


if __name__ == "__main__":
    main()
