"""The program `pixelrt`. Commands are imported when they run, so that `pixelrt --help` answers at once."""

from __future__ import annotations

import errno
import os
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any

import click

from pixelrt.errors import InputError, MissingExtra, PixelrtWarning

# Command -> (module:object, what `--help` says)
OWN = {
    "run": ("pixelrt.cli.run:run", "Export a checkpoint if need be, then ask about a sample picture."),
    "segment": ("pixelrt.cli.segment:segment", "Ask a bundle about a picture: text, masks and an overlay."),
    "track": ("pixelrt.cli.track:track", "Follow marked objects through a video."),
    "bag": ("pixelrt.cli.bag:bag", "Ask about every image of a ROS 2 recording, and write it anew."),
    "serve": ("pixelrt.cli.serve:serve", "Answer over HTTP, with a page to ask on."),
    "triton": (
        "pixelrt.cli.triton:triton",
        "Write a bundle as a model repository of Triton Inference Server.",
    ),
    "eval": ("pixelrt.cli.evaluate:evaluate", "Score bundles on a published dataset."),
    "build": ("pixelrt.cli.build:build", "Turn a bundle's graphs into TensorRT engines."),
    "bench": ("pixelrt.cli.bench:bench", "Measure bundles: time by stage, memory, energy; compare them."),
    "compare": (
        "pixelrt.cli.compare:compare",
        "Say whether one measurement of bench is slower than another.",
    ),
    "inspect": ("pixelrt.cli.inspect:inspect", "Say what is in a bundle."),
    "pack": ("pixelrt.cli.pack:pack", "Write a bundle to one file, for a machine without a network."),
    "unpack": ("pixelrt.cli.pack:unpack", "Make a bundle from such a file."),
    "doctor": ("pixelrt.cli.doctor:doctor", "Say what this machine has, and how to mend what is wrong."),
}
# Commands of other packages join through entry points of this group (name -> click command).
GROUP = "pixelrt.commands"
# What is known of them without importing them: (extra, what `--help` says)
KNOWN = {
    "export": ("export", "Make a bundle from a checkpoint (needs pixelrt[export])."),
}
# What stands in for a command of other packages where none of them brings it.
STANDS_IN = {
    "verify": (
        "pixelrt.cli.verify:verify",
        "Compare what a bundle gives here with its golden outputs; or a bundle with its checkpoint.",
    ),
}
# Errors of a path that was given; any other OSError (a full disk, a broken one) is a failure.
ADVICE = {
    errno.EACCES: "Change its permissions or give another path.",
    errno.EPERM: "Change its permissions or give another path.",
    errno.EROFS: "Give a path on another file system.",
    errno.ENAMETOOLONG: "Give a path; are the arguments in order?",
    errno.ENOTDIR: "Give a path that leads through folders only.",
    errno.EISDIR: "A file is wanted in its place.",
    errno.EEXIST: "Give another path.",
    errno.ENOENT: "Check the path.",
}


class Program(click.Group):
    """Loads commands late and turns every exception into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        joined = {point.name for point in entry_points(group=GROUP)}
        return [*OWN, *sorted((joined | set(KNOWN) | set(STANDS_IN)) - set(OWN))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in OWN:
            return _object(OWN[cmd_name][0])
        for point in entry_points(group=GROUP, name=cmd_name):
            return _checked(cmd_name, point.load())
        if cmd_name in STANDS_IN:
            return _object(STANDS_IN[cmd_name][0])
        if cmd_name in KNOWN:
            raise MissingExtra(f"the command {cmd_name!r}", KNOWN[cmd_name][0])
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        known = {name: text for name, (_, text) in (OWN | STANDS_IN | KNOWN).items()}
        rows = [(name, known.get(name, "Added by another package.")) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _warnings_in_one_line():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of our output went away: click ends quietly
            raise click.exceptions.Exit(_report(error, debug=bool(ctx.meta.get("pixelrt.debug")))) from None


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Our own warnings as `warning: sentence`, those of libraries as Python shows them."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, PixelrtWarning):
            say(f"warning: {message}", err=True)
        else:
            usual(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def _report(error: Exception, debug: bool) -> int:
    """Say what went wrong on stderr; returns the exit code: 2 for bad input, 1 for a failure."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError):
        error = MissingExtra.from_import(error) or error
    if isinstance(error, OSError):
        error = _bad_path(error) or error
    if isinstance(error, InputError):
        say(f"error: {error}", err=True)
        return 2
    words = " ".join(str(error).split())
    hint = "" if debug else "  (--debug shows where)"
    say(f"failed: {type(error).__name__}{': ' if words else ''}{words}{hint}", err=True)
    return 1


def _bad_path(error: OSError) -> InputError | None:
    """The sentence for a path that cannot be used; None where the error is of another kind."""
    if error.errno not in ADVICE or not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    name = os.fsdecode(error.filename)
    if error.errno == errno.ENAMETOOLONG:
        name = f"A path of {len(name):,} characters"
    return InputError(f"{name} cannot be read or written: {error.strerror}. {ADVICE[error.errno]}")


def printable(text: str) -> str:
    """`text` as UTF-8 can hold it: each byte of a file name that is none (a lone surrogate) becomes U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def say(text: str = "", err: bool = False, end: bool = True) -> None:
    """Print a line, whatever file names are in it; or with `end` false a part of one."""
    click.echo(printable(text), err=err, nl=end)


def _object(place: str) -> click.Command:
    module, _, name = place.partition(":")
    return _checked(name, getattr(import_module(module), name))


def _checked(name: str, command: object) -> click.Command:
    if not isinstance(command, click.Command):
        raise TypeError(
            f"the command {name!r} of group {GROUP} is a {type(command).__name__}, not a click.Command"
        )
    return command


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["pixelrt.debug"] = True


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        try:
            click.echo(f"pixelrt {version('pixelrt')}")
        except PackageNotFoundError:
            click.echo("pixelrt (not installed: running from its source)")
        ctx.exit()


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_set_debug, is_eager=True, help="Show tracebacks."
)


@click.group(cls=Program, name="pixelrt", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, callback=_show_version, is_eager=True,
              help="Show the version.")  # fmt: skip
@debug_option
def main() -> None:
    """Text and a picture in, answer text and pixel masks out."""
