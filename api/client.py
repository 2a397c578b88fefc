"""The client, under its older name: it is a distribution of its own, ``libs_service_client``.

``from api.client import Client`` and its submodules (``api.client.errors``) stay for programs that were written so. A
program whose own code has a package ``api`` imports ``libs_service_client``, or ``libs_service``.
"""

from __future__ import annotations

import sys

import libs_service_client
from libs_service_client import *  # noqa: F403

__all__ = libs_service_client.__all__

for _name, _module in list(sys.modules.items()):
    if _name.startswith("libs_service_client."):
        sys.modules[_name.replace("libs_service_client", __name__, 1)] = _module  # the same classes, not a copy of them
