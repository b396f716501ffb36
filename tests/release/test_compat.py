"""The same bundles under ONNX Runtime 1.23.2, the newest for Python 3.10: the language graph's twin runs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
import onnxruntime, pixelrt
seg = pixelrt.load(sys.argv[1])
questions = json.loads(sys.argv[2])
asked = [(image, what if isinstance(what, str) else pixelrt.Classes(what)) for image, what in questions]
answers = [seg.segment(image, query) for image, query in asked]
said = [[mask.label for mask in a.masks] + getattr(a, "token_ids", []) for a in answers]
masks = [[mask.rle()["counts"] for mask in answer.masks] for answer in answers]
print(json.dumps([onnxruntime.__version__, seg._language.file.cache, said, masks]))
"""


@pytest.mark.parametrize("name", ["pixellm-tiny", "psalm-tiny"])
def test_same_answers_and_masks(
    name: str,
    root: Path,
    samples: list[tuple[Path, str]],
    class_names: list[str],
    request: pytest.FixtureRequest,
) -> None:
    import pixelrt

    bundle = request.getfixturevalue("psalm_bundle" if name == "psalm-tiny" else "tiny_bundle")
    python = root / ".venv-compat" / "bin" / "python"
    if not python.exists():
        pytest.skip(".venv-compat is not there; make test makes it")
    questions = [
        (str(image), class_names if name == "psalm-tiny" else prompt) for image, prompt in samples[:4]
    ]
    path = os.pathsep.join(str(root / folder) for folder in ("runtime", "kernels"))
    done = subprocess.run(
        [python, "-c", PROGRAM, bundle, json.dumps(questions)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version, cache, said, masks = json.loads(done.stdout)
    assert (version, cache) == ("1.23.2", "concat")
    assert any(masks)
    seg = pixelrt.load(bundle)
    for (image, question), other_said, other_masks in zip(questions, said, masks, strict=True):
        answer = seg.segment(image, question if isinstance(question, str) else pixelrt.Classes(question))
        assert [mask.label for mask in answer.masks] + getattr(answer, "token_ids", []) == other_said
        for mask, counts in zip(answer.masks, other_masks, strict=True):
            other = pixelrt.rle.decode({"size": list(mask.mask.shape), "counts": counts})
            # The two versions round differently: a pixel whose logit is nearly 0 may change sides.
            assert (mask.mask != other).mean() < 1e-4
