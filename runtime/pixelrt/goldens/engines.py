"""Engines against the golden outputs of their bundle, on the GPU they were built for; the verdict lies beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pixelrt.bundle import Bundle
from pixelrt.errors import InputError
from pixelrt.goldens.check import Finding, check, first_fault
from pixelrt.goldens.limits import STAGES
from pixelrt.segmenter import open_bundle
from pixelrt.verdict import Verdict, verdict_on, write_verdict

Tell = Callable[[str, list[Finding]], None]


def verify_engines(bundle: Bundle, backend: Any, tell: Tell = lambda stage, found: None) -> Verdict:
    """backend: a TrtBackend opened with unverified=True. Raises InputError: no goldens, or engines too small."""
    engines, device = backend.engines, backend.device.name

    def concluded(passed: bool | None, words: str, **more: Any) -> Verdict:
        verdict = verdict_on(engines, bundle, passed, words, device=device, backend=backend.name, **more)
        write_verdict(engines.folder, verdict)
        return verdict

    # TensorRT may end the process; then this stands.
    concluded(None, "its verification did not come to an end")
    try:
        findings = check(open_bundle(bundle, backend), tell)
    except InputError as error:
        concluded(None, str(error))
        raise
    fault = first_fault(findings)
    listed = [finding.to_json() for finding in findings]
    if fault is not None:
        return concluded(False, fault.sentence(), stage=fault.stage, findings=listed)
    return concluded(True, summary(findings), findings=listed)


def summary(findings: list[Finding]) -> str:
    """Of findings that all passed."""
    parts = [finding for finding in findings if finding.stage in STAGES]
    nearest = max(parts, key=lambda finding: finding.error / finding.limit)
    return f"{len(findings)} comparisons with the bundle's golden outputs; nearest to its limit: {nearest.sentence()}"
