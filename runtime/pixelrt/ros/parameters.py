"""The node's parameters, and the question that some of them make. docs/ros2.md says what each is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pixelrt.errors import InputError
from pixelrt.queries import TASKS, Classes, Query, Refer

# Parameter -> default. A list of one empty string stands for none: rclpy cannot tell the type of an empty one.
PARAMETERS: dict[str, Any] = {
    "bundle": "",
    "backend": "auto",
    "prompt": "",
    "task": "",
    "classes": [""],
    "things": [""],
    "max_new_tokens": 512,
    "numbers": "class",
    "tracking": False,
    "track_every": 30,
    "track_drift": 0.5,
    "timeout_s": 10.0,
    "stall_s": 3.0,
    "image_transport": "raw",
    "input_qos": "SENSOR_DATA",
    "input_qos_depth": 1,
    "output_qos": "DEFAULT",
    "output_qos_depth": 10,
    "autostart": True,
}
QUESTION = ("task", "prompt", "classes", "things")
CHANGEABLE = (*QUESTION, "bundle", "timeout_s", "stall_s")  # while the node is configured
ASKED = ("", *TASKS, "referring")


def question_of(
    task: str, prompt: str, classes: Sequence[str] = (), things: Sequence[str] = ()
) -> str | Query | None:
    """None where nothing is asked yet. For a task of classes the prompt, if any, is their names, with commas between.

    Raises InputError.
    """
    if task not in ASKED:
        raise InputError(f"the task is {task!r}. Choose one of: {', '.join(filter(None, ASKED))}; or none.")
    prompt = prompt.strip()
    if task in TASKS:
        # Each class once: a prompt is spoken or typed.
        named = dict.fromkeys(part.strip() for part in re.split(r"[,\n]", prompt) if part.strip())
        names = list(named) or list(classes)
        known = [thing for thing in things if thing in names] if things else None
        return Classes(names, task, known) if names else None
    if not prompt:
        return None
    return Refer(prompt) if task == "referring" else prompt


def without_blanks(value: Any) -> Any:
    """A list without its empty strings; anything else as it is."""
    return [text for text in value if text] if isinstance(value, list | tuple) else value
