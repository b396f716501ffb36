"""ONNX Runtime: which, with which providers. It is asked in a process of its own, which a broken one may end."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pixelrt.doctor.machine import PYTHON, Machine
from pixelrt.doctor.part import Part, Problem
from pixelrt.doctor.requirement import release

PROBE = (
    PYTHON,
    "-c",
    "import json, onnxruntime as o; print(json.dumps([o.__version__, o.get_available_providers()]))",
)
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")  # they overwrite each other
CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
OLDEST = (1, 23, 2)
IN_PLACE_SINCE = (1, 25)  # as in engine_ort.py, which only imports where there is an ONNX Runtime


@dataclass(frozen=True)
class OnnxRuntime:
    """version: None where it cannot be imported; error then says why."""

    version: str | None
    providers: tuple[str, ...] = ()
    error: str = ""


def read_onnx_runtime(machine: Machine) -> OnnxRuntime:
    ran = machine.run(PROBE)
    try:
        version, providers = (
            json.loads(ran.out.strip().splitlines()[-1]) if ran and ran.code == 0 else (None, ())
        )
        found = OnnxRuntime(version, tuple(providers))
    except (ValueError, IndexError, TypeError):
        found = OnnxRuntime(None)
    if found.version:
        return found
    lines = ran.err.strip().splitlines() if ran else []
    return OnnxRuntime(None, (), lines[-1] if lines else "it does not answer")


def uses_gpu(machine: Machine) -> bool:
    return bool({CUDA, TENSORRT} & {*read_onnx_runtime(machine).providers})


def examine(machine: Machine) -> Part:
    found = read_onnx_runtime(machine)
    installed = [name for name in DISTRIBUTIONS if name in machine.packages]
    facts = {"version": found.version, "providers": list(found.providers), "installed": installed}
    again = f"pip uninstall -y {' '.join(DISTRIBUTIONS)} && pip install 'pixelrt[cpu]'"
    if found.version is None:
        if not installed:
            problem = Problem(
                "ONNX Runtime is not installed.", "Install it.", "pip install 'pixelrt[cpu]'", stops=True
            )
            return Part("onnxruntime", "none", facts, (problem,))
        what = f"ONNX Runtime is installed, but cannot be imported: {found.error}"
        problem = Problem(what, "Install it again.", again, stops=True)
        return Part("onnxruntime", f"cannot be imported ({found.error})", facts, (problem,))
    says = f"{found.version}: {', '.join(name.removesuffix('ExecutionProvider') for name in found.providers)}"
    if release(found.version) < IN_PLACE_SINCE:
        says += "; runs the language graph's compatibility twin"
    problems = []
    if len(installed) > 1:
        problems.append(
            Problem(
                f"{' and '.join(installed)} are both installed; they overwrite each other's files.",
                "Remove both, then install one (pixelrt[gpu] for the other).",
                again,
            )
        )
    if release(found.version) < OLDEST:
        problems.append(
            Problem(
                f"ONNX Runtime {found.version} is older than 1.23.2.",
                "Upgrade it.",
                "pip install --upgrade 'pixelrt[cpu]'",
                stops=True,
            )
        )
    if CPU not in found.providers:
        problems.append(
            Problem("This ONNX Runtime has no CPU provider.", "Install the usual one.", again, stops=True)
        )
    return Part("onnxruntime", says, facts, tuple(problems))
