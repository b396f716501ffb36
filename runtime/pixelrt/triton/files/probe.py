#!/usr/bin/env python3
"""Ask the model the stored question and compare the answer: exit code 0 where it is the expected one, 1 where not.

python3 probe.py                  a readiness probe
python3 probe.py --recover        a liveness probe: where the answer is wrong or missing, unload the models, load them
                                  again and ask once more (needs tritonserver --model-control-mode=explicit)

Triton's own /v2/health/ready and /v2/models/NAME/ready stay 200 when the process of a Python model has died. This asks
for a real inference of every graph (`fresh`: a picture that is known would need no encoder), before all that waits
(priority 1). Needs Python 3.10 and nothing else.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Other backends round otherwise: an edge may move by a pixel or two, a mask's area by the pixels of its edge.
EDGE, AREA = 0.02, 0.05
SETTLE_S = 5.0


class Failed(Exception):
    """What is wrong, in a sentence."""


def post(url, body, headers=None, timeout=30.0):
    request = urllib.request.Request(url, body, headers or {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", "replace")[:500]
        raise Failed(f"{url} answers {error.code}: {said}") from None
    except OSError as error:
        raise Failed(f"{url} does not answer: {getattr(error, 'reason', error)}") from None


def ask(url, model, query, picture, timeout):
    """The answer's document, by the KServe protocol with its extension for binary tensors."""
    picture = len(picture).to_bytes(4, "little") + picture
    binary = {"binary_data_size": len(picture)}
    question = [json.dumps(query)]
    head = json.dumps({
        "inputs": [
            {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": binary},
            {"name": "query", "shape": [1, 1], "datatype": "BYTES", "data": question},
        ],
        "outputs": [{"name": "answer", "parameters": {"binary_data": False}}],
        "parameters": {"priority": 1, "fresh": True},
    }).encode()  # fmt: skip
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    got = json.loads(post(f"{url}/v2/models/{model}/infer", head + picture, headers, timeout))
    return json.loads(got["outputs"][0]["data"][0])


def compare(found, wanted):
    """Raises Failed where the answer is not the expected one."""
    if found["text"] != wanted["text"]:
        raise Failed(f"the answer is {found['text']!r}, expected was {wanted['text']!r}")
    if len(found["masks"]) != len(wanted["masks"]):
        raise Failed(f"{len(found['masks'])} masks came, expected were {len(wanted['masks'])}")
    slack = 2 + EDGE * max(wanted["size"])
    for number, (mask, other) in enumerate(zip(found["masks"], wanted["masks"], strict=True), start=1):
        if mask["label"] != other["label"]:
            raise Failed(f"mask {number} is of {mask['label']!r}, expected was {other['label']!r}")
        boxes = mask["box"] or [0, 0, 0, 0], other["box"] or [0, 0, 0, 0]
        moved = max(abs(here - there) for here, there in zip(*boxes, strict=True))
        if moved > slack or abs(mask["area"] - other["area"]) > max(16, AREA * other["area"]):
            raise Failed(
                f"mask {number} has box {mask['box']} and {mask['area']} pixels, "
                f"expected were {other['box']} and {other['area']}"
            )


def probe(url, sample, timeout):
    picture = (HERE / "sample.png").read_bytes()
    start = time.monotonic()
    compare(ask(url, sample["model"], sample["query"], picture, timeout), sample["expect"])
    return time.monotonic() - start


def recover(url, models, timeout):
    """Unload the models, the front first, and load them, the front last.

    A model whose process died may stay "UNLOADING" for good (seen with Triton 2.51: the request that found it is never
    let go). Loading it again works all the same, so that is waited for a moment only.
    """
    repository = f"{url}/v2/repository"
    for model in models:
        post(f"{repository}/models/{model}/unload", b"{}", timeout=timeout)
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        index = json.loads(post(f"{repository}/index", b"{}", timeout=timeout))
        states = {entry["name"]: entry.get("state") for entry in index}
        if not any(states.get(model) in ("READY", "LOADING", "UNLOADING") for model in models):
            break
        time.sleep(0.1)
    for model in reversed(models):
        post(f"{repository}/models/{model}/load", b"{}", timeout=timeout)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for each step")
    parser.add_argument("--recover", action="store_true")
    asked = parser.parse_args()
    sample = json.loads((HERE / "sample.json").read_text(encoding="utf-8"))
    try:
        try:
            spent_s = probe(asked.url, sample, asked.timeout)
        except Failed as failure:
            if not asked.recover:
                raise
            print(f"unload and load: {failure}", file=sys.stderr)
            recover(asked.url, sample["models"], asked.timeout)
            spent_s = probe(asked.url, sample, asked.timeout)
    except Failed as failure:
        print(f"failed: {failure}", file=sys.stderr)
        return 1
    except (KeyError, IndexError, TypeError, ValueError) as error:
        print(f"failed: the answer cannot be read ({type(error).__name__}: {error})", file=sys.stderr)
        return 1
    print(f"{sample['model']} answered as expected, in {1e3 * spent_s:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
