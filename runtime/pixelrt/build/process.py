"""Runs `worker.py` on a job, hears its progress, and leaves no process behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pixelrt.build.worker import Job

Tell = Callable[[float, str], None]  # part of the work done, 0..1; what is being done


@dataclass(frozen=True)
class Outcome:
    """done: what the builder says of its engine, None where it refused. refused: its reasons. log: its warnings."""

    done: dict[str, Any] | None
    refused: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


def run_job(job: Job, tell: Tell) -> Outcome:
    """Wait for the job. Whatever ends this call, Ctrl-C too, ends the process; a half-written file is the caller's.

    Raises InputError where the TensorRT that the job names cannot be used, RuntimeError where the process fell over.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "pixelrt.build.worker"]
    with (
        tempfile.TemporaryFile() as errors,
        # A session of its own: Ctrl-C reaches this process alone, which then ends that one.
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdin is not None and process.stdout is not None
            with process.stdin:
                process.stdin.write(json.dumps(dataclasses.asdict(job)))
            log: list[str] = []
            for line in process.stdout:
                message = json.loads(line)
                if "part" in message:
                    tell(message["part"], message["phase"])
                elif "log" in message:
                    log.append(message["log"])
                elif "done" in message:
                    return Outcome(message["done"], [], log)
                else:
                    return Outcome(None, message["refused"], log)
            process.wait()
        finally:
            process.kill()
        errors.seek(0)
        raise RuntimeError(_fallen(process.returncode, errors.read().decode(errors="replace"), log))


def _fallen(code: int, errors: str, log: list[str]) -> str:
    last = next((line for line in reversed([*log, *errors.splitlines()]) if line.strip()), "it said nothing")
    if code == -signal.SIGKILL:
        return (
            "the system killed the builder, most likely for want of memory: close other programs, add swap, "
            "or give it less with --memPoolSize=workspace:N; what was finished is kept"
        )
    if code < 0:
        return f"TensorRT ended the builder by {signal.Signals(-code).name}; its last words: {last}"
    return f"the builder ended with exit code {code}; its last words: {last}"
