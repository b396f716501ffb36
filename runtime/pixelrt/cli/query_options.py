"""Options of the program that make a query."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from pixelrt.errors import InputError
from pixelrt.queries import TASKS, Classes, Query, Refer, Regions

F = TypeVar("F", bound=Callable[..., Any])
ASKED = (*TASKS, "referring", "interactive")


@dataclass(frozen=True)
class QueryOptions:
    """The options below, as click gives them."""

    task: str | None
    classes: Path | None
    things: Path | None
    min_score: float
    several: bool
    none_below: float
    point: tuple[str, ...]
    scribble: tuple[str, ...]
    box: tuple[str, ...]
    mask: tuple[Path, ...]


OPTIONS = (
    click.option("--task", type=click.Choice(ASKED), help="What to do, for bundles with several tasks."),
    click.option("--classes", type=click.Path(path_type=Path), metavar="FILE",
                 help="panoptic, instance, semantic: class names, one a line; or COCO categories as JSON."),
    click.option("--things", type=click.Path(path_type=Path), metavar="FILE",
                 help="panoptic: the classes that are countable things, one a line.  [default: all]"),
    click.option("--min-score", type=click.FloatRange(0, 1), default=0.0, show_default=True,
                 help="instance: leave out objects below it."),
    click.option("--several", is_flag=True, help="referring: everything that fits well, not the best alone."),
    click.option("--none-below", type=click.FloatRange(0, 1), default=0.0, show_default=True,
                 help="referring: answer nothing where the best score is below it."),
    click.option("--point", multiple=True, metavar="X,Y", help="interactive: an object at a pixel."),
    click.option("--scribble", multiple=True, metavar="'X,Y X,Y …'", help="interactive: along a line."),
    click.option("--box", multiple=True, metavar="X0,Y0,X1,Y1", help="interactive: in a box."),
    click.option("--mask", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
                 help="interactive: under a mask, a picture that is not black there."),
)  # fmt: skip


def query_options(command: F) -> F:
    """Add the options to a command; it takes them as keyword arguments named like QueryOptions' fields."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def query_of(prompt: str | None, options: QueryOptions) -> str | Query:
    """The query that the options ask for; without `--task`, the prompt itself."""
    _refuse_strangers(options)
    if options.task is None:
        if prompt is None:
            raise click.MissingParameter(
                ctx=click.get_current_context(), param_type="argument", param_hint="'PROMPT'"
            )
        return prompt
    if options.task == "referring":
        if prompt is None:
            raise InputError('--task referring takes a PROMPT. Say what to find: "the red mug".')
        return Refer(prompt, options.several, options.none_below)
    if prompt is not None:
        raise InputError(f"--task {options.task} takes no PROMPT, but {prompt!r} was given. Leave it out.")
    if options.task == "interactive":
        return Regions(
            points=[_numbers(text, 2, "--point") for text in options.point],
            scribbles=[[_numbers(p, 2, "--scribble") for p in text.split()] for text in options.scribble],
            boxes=[_numbers(text, 4, "--box") for text in options.box],
            masks=[read_mask(path) for path in options.mask],
        )
    if options.classes is None:
        raise InputError(
            f"--task {options.task} needs class names. Give a file with one a line: --classes FILE"
        )
    names, things = _class_names(options.classes)
    if options.things is not None:
        things = _class_names(options.things)[0]
    return Classes(names, options.task, things, options.min_score)


def read_mask(path: Path) -> Any:
    """(H, W): a picture's pixels that are not black."""
    from pixelrt.image import open_image

    return open_image(path).any(axis=-1)


def _refuse_strangers(options: QueryOptions) -> None:
    """Options of another task would be ignored: say so instead."""
    own = {
        "referring": ("several", "none_below"),
        "interactive": ("point", "scribble", "box", "mask"),
        "panoptic": ("classes", "things"),
        "instance": ("classes", "min_score"),
        "semantic": ("classes",),
    }.get(options.task or "", ())
    for field in fields(options):
        if field.name != "task" and field.name not in own and getattr(options, field.name):
            option = "--" + field.name.replace("_", "-")
            where = f"--task {options.task} does not take it" if options.task else "it needs a --task"
            raise InputError(f"{option} was given, but {where}. See pixelrt segment --help.")


def _numbers(text: str, count: int, option: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        form = "X,Y" if count == 2 else "X0,Y0,X1,Y1"
        raise InputError(f"{option} is {text!r}. Give {count} numbers: {form}")
    return numbers


def _class_names(path: Path) -> tuple[list[str], list[str] | None]:
    """Names, and which are things where the file says so."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()], None
        entries = json.loads(text)
        entries = entries["categories"] if isinstance(entries, dict) else entries
        names = [entry["name"] for entry in entries]
        return names, [entry["name"] for entry in entries if entry.get("isthing", 1)]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Give a text file.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8. Save it as such.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no list of COCO categories. Give names, one a line.") from None
