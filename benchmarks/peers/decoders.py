"""One language model in two loops over ONNX Runtime: pixelrt's, and that of onnxruntime-genai."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pixelrt.bundle import GraphFile
from pixelrt.engine_ort import OrtEngine
from pixelrt.language import Context

from benchmarks.peers.grid import BLOCK
from benchmarks.peers.turns import Times

Clock = Callable[[], float]  # seconds


class Ours:
    """The runtime's own engine and cache, with the token table on the host, as in a bundle."""

    def __init__(self, file: GraphFile, embeddings: np.ndarray, threads: int, clock: Clock) -> None:
        self.engine, self.embeddings, self.clock = OrtEngine(file, threads=threads), embeddings, clock

    def answer(self, prompt: Sequence[int], count: int) -> tuple[list[int], np.ndarray, Times]:
        """`count` tokens and the logits of the last one, greedily."""
        start = self.clock()
        context = Context(self.engine, len(prompt) + count)
        rows = context(self._embedded(prompt), [len(prompt) - 1])
        tokens = [int(rows.logits[0].argmax())]
        read = self.clock()
        while len(tokens) < count:
            rows = context(self._embedded(tokens[-1:]), [0])
            tokens.append(int(rows.logits[0].argmax()))
        return tokens, rows.logits[0], per_token(start, read, self.clock(), count)

    def _embedded(self, ids: Sequence[int]) -> np.ndarray:
        return np.asarray(self.embeddings[np.asarray(ids)], np.float32)


class Genai:
    """onnxruntime-genai's own loop."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        import onnxruntime_genai

        self._genai, self.clock = onnxruntime_genai, clock
        self._model = onnxruntime_genai.Model(str(folder))

    def answer(self, prompt: Sequence[int], count: int) -> tuple[list[int], Times]:
        """`count` tokens, greedily."""
        start = self.clock()
        generator = self._generator(prompt, count)
        generator.generate_next_token()  # chooses; from the second one on it reads the one before
        read = self.clock()
        for _ in range(count - 1):
            generator.generate_next_token()
        stop = self.clock()
        tokens = [int(token) for token in generator.get_sequence(0)[len(prompt) :]]
        return tokens, per_token(start, read, stop, count)

    def logits(self, prompt: Sequence[int], count: int) -> np.ndarray:
        """Of the last of `count` tokens. Asking for them reads what was chosen last."""
        generator = self._generator(prompt, count)
        for _ in range(count - 1):
            generator.generate_next_token()
        return np.asarray(generator.get_logits()).reshape(-1)

    def _generator(self, prompt: Sequence[int], count: int) -> Any:
        """One that has read the prompt."""
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
        generator = self._genai.Generator(self._model, parameters)
        generator.append_tokens(np.asarray(prompt, np.int32))
        return generator


def per_token(start: float, read: float, stop: float, count: int) -> Times:
    return {"prefill": read - start, "token": (stop - read) / (count - 1)}


def build(checkpoint: Path, folder: Path, options: Sequence[str], site: Path) -> Path:
    """onnxruntime-genai's int4 graph and its configuration."""
    if not (folder / "genai_config.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint)]
        command += ["-o", str(partial), "-p", "int4", "-e", "cpu", "-c", str(folder.parent / "cache")]
        command += ["--extra_options", f"block_size={BLOCK}", *options]
        ended = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if ended.returncode:
            raise SystemExit(f"the model builder stopped:\n{ended.stdout.decode()[-3000:]}")
        partial.rename(folder)
    return folder


def with_threads(folder: Path, threads: int) -> Path:
    """Its configuration says how many threads an operator has."""
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    path.write_text(json.dumps(config, indent=1))
    return folder
