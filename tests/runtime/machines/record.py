"""Record this machine: everything that `pixelrt doctor` reads of it, as JSON to stdout."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from typing import Any

from pixelrt.doctor import examine
from pixelrt.doctor.debian import STATUS
from pixelrt.doctor.machine import Machine, Ran, this_machine

KEPT = re.compile(r"^Package: (nvidia-jetpack|tensorrt|.*nvinfer)", re.MULTILINE)  # of dpkg's hundreds


def record() -> dict[str, Any]:
    machine = this_machine()
    files: dict[str, str] = {}
    commands: dict[str, list[Any]] = {}

    class Recording(Machine):
        def read(self, path: str) -> str | None:
            text = super().read(path)
            if text is not None and path == STATUS:
                text = "\n\n".join(entry for entry in text.split("\n\n") if KEPT.search(entry))
            if text is not None:
                files[path] = text
            return text

        def has(self, path: str) -> bool:
            found = super().has(path)
            if found:
                files.setdefault(path, "")
            return found

    def run(command: tuple[str, ...]) -> Ran | None:
        ran = machine.run(command)
        if ran is not None:
            commands[" ".join(command)] = [ran.code, ran.out, ran.err]
        return ran

    fields = {name: getattr(machine, name) for name in machine.__dataclass_fields__}
    examine(replace(Recording(**fields), run=run))
    wanted = {re.split(r"[^\w.-]", text)[0] for text in machine.requires} | {"pixelrt"}
    packages = {n: v for n, v in machine.packages.items() if n in wanted or "tensorrt" in n or "onnx" in n}
    return {
        "source": "recorded",
        "processor": machine.processor,
        "python": machine.python,
        "packages": packages,
        "requires": machine.requires,
        "library": machine.library,
        "disk_free": machine.disk_free,
        "files": files,
        "commands": commands,
    }


if __name__ == "__main__":
    json.dump(record(), sys.stdout, indent=1, ensure_ascii=True)
    print()
