"""`optimum-cli export pixelrt CHECKPOINT BUNDLE`.

optimum reads every file of this folder in every installed distribution: `optimum`, `optimum.commands` and
`optimum.commands.register` are namespace packages, so none of them may hold an `__init__.py`.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class PixelRtExportCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(name="pixelrt", help="Export a PixelLM or PSALM checkpoint to a pixelrt bundle.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("checkpoint", type=Path, help="folder of the weights, as published")
        parser.add_argument("bundle", type=Path, help="folder to write")
        parser.add_argument("--precision", default="fp32", help="of the weights: fp32 (default) or fp16")
        parser.add_argument("--vision-tower", type=Path, metavar="DIR", help="folder of its CLIP")

    def run(self) -> None:
        # Here, so that `optimum-cli` starts without the exporter.
        from pixelrt.errors import InputError
        from pixelrt.goldens.make import make_goldens
        from pixelrt_export.export import export_bundle

        args = self.args
        try:
            export_bundle(
                args.checkpoint,
                args.bundle,
                precision=args.precision,
                vision_tower=args.vision_tower,
                goldens=make_goldens,
            )
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None


REGISTER_COMMANDS = [(PixelRtExportCommand, ExportCommand)]
