"""Asks all questions at once, with the client of the repository: python triton_client.py REPO URL OUT.npz

On stdin: {"pictures": [path, …], "queries": [query, …]}. OUT holds `answer.N` (JSON) and `masks.N` of each.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.http as triton

repository, url, out = sys.argv[1:]
sys.path.insert(0, repository)
from client import ask  # noqa: E402

asked = json.load(sys.stdin)


def one(number: int) -> tuple[dict, np.ndarray]:
    with triton.InferenceServerClient(url, network_timeout=300, connection_timeout=300) as client:
        picture = Path(asked["pictures"][number]).read_bytes()
        return ask(client, picture, asked["queries"][number])


with ThreadPoolExecutor(len(asked["queries"])) as pool:
    found = list(pool.map(one, range(len(asked["queries"]))))
arrays = {f"masks.{number}": masks for number, (_, masks) in enumerate(found)}
np.savez(
    out, **arrays, **{f"answer.{number}": json.dumps(answer) for number, (answer, _) in enumerate(found)}
)
