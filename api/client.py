"""The older name of the client, which is the distribution and package ``libs_service_client``.

``from api.client import Client`` and the submodules (``api.client.errors``) remain for existing programs. A program
that has a package ``api`` of its own imports ``libs_service_client`` or ``libs_service``.
"""

from __future__ import annotations

import sys

import libs_service_client
from libs_service_client import *  # noqa: F403

__all__ = libs_service_client.__all__

for _name, _module in list(sys.modules.items()):
    if _name.startswith("libs_service_client."):
        sys.modules[_name.replace("libs_service_client", __name__, 1)] = _module  # the same classes, not a copy of them
