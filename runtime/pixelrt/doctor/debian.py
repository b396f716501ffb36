"""Installed Debian packages, from dpkg's own file: the same that `dpkg-query -W` prints, without running it."""

from __future__ import annotations

import re
from functools import lru_cache

from pixelrt.doctor.machine import Machine

STATUS = "/var/lib/dpkg/status"
_ENTRY = re.compile(r"^Package: (\S+)\nStatus: \S+ \S+ installed$", re.MULTILINE)
_VERSION = re.compile(r"^Version: (\S+)$", re.MULTILINE)


def version_of(machine: Machine, package: str) -> str | None:
    return _installed(machine.read(STATUS) or "").get(package)


@lru_cache(maxsize=1)
def _installed(text: str) -> dict[str, str]:
    found = {}
    for entry in text.split("\n\n"):
        name, version = _ENTRY.search(entry), _VERSION.search(entry)
        if name and version:
            found[name[1]] = version[1]
    return found
