"""Load a server with good and hostile requests, and say whether it stayed right, polite and small.

python benchmarks/serve_load.py BUNDLE --requests 1000 --clients 8

Clients ask in turn about the pictures of calib_data; a tenth of all requests is hostile: huge, truncated, of a wrong
type, empty, slow, a decompression bomb, bad JSON, too many pixels, a URL to fetch. Every good answer is compared with
that of the same model in this process, every bad one must be a 4xx (or a closed connection, for the slow ones) with a
sentence. Memory is the server's anonymous memory (RssAnon), after a warm-up and at the end. Exit code 1 where
something is not as it should be.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import random
import re
import socket
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PATIENCE_S = 2.0  # of the server with its clients, so that the slow ones are seen to be let go


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that announces side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"\0" * 100_000)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def hostile(picture: bytes) -> list[tuple[str, str, dict[str, Any]]]:
    """(what it is, path, arguments of httpx's post)."""
    good = {"prompt": "Segment the red circle."}
    form = [
        ("empty file", {"files": {"image": b""}, "data": good}),
        ("no file", {"data": good}),
        ("not a picture", {"files": {"image": b"hello" * 100}, "data": good}),
        ("truncated", {"files": {"image": picture[: len(picture) // 2]}, "data": good}),
        ("huge", {"files": {"image": b"\0" * (9 << 20)}, "data": good}),
        ("bomb", {"files": {"image": bomb(60_000)}, "data": good}),
        ("many pixels", {"files": {"image": bomb(5_000)}, "data": good}),
        ("bad JSON", {"files": {"image": picture}, "data": {"task": "interactive", "points": "[[1,"}}),
        ("long prompt", {"files": {"image": picture}, "data": {"prompt": "x" * 5_000}}),
        ("wrong type", {"content": b"hello", "headers": {"content-type": "text/plain"}}),
    ]
    url = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/secret.png"}}
    chat = {"json": {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, url]}]}}
    return [(what, "/v1/segment", request) for what, request in form] + [
        ("a URL to fetch", "/v1/chat/completions", chat),
        ("empty body", "/v1/chat/completions", {"content": b""}),
    ]


def slow(address: str) -> bool:
    """Send half a request and wait; true where the server ends it with 408 or closes."""
    host, port = address.removeprefix("http://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(
            b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 1000\r\n\r\n--x\r\n"
        )
        try:
            got = client.recv(1000)
        except ConnectionResetError:
            got = b""
    return not got or got.startswith(b"HTTP/1.1 408")


def anonymous_bytes(pid: int) -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


class Load:
    """What the clients share."""

    def __init__(self, address: str, pid: int, truth: list[tuple[bytes, str, Any]], total: int) -> None:
        self.address, self.pid, self.truth, self.total = address, pid, truth, total
        self.number = itertools.count()
        self.bad = hostile(truth[0][0])
        self.codes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.times_s: list[float] = []
        self.memory: list[int] = []
        self.lock = threading.Lock()

    def client(self, seed: int) -> None:
        import httpx

        chance = random.Random(seed)
        with httpx.Client(base_url=self.address, timeout=120) as client:
            while (number := next(self.number)) < self.total:
                if number % 10 == 9:
                    what, said = self.ask_badly(client, number // 10)
                else:
                    what, said = "good", self.ask(client, chance)
                with self.lock:
                    self.codes[what if not said else f"{what}: wrong"] += 1
                    self.wrong += [said] if said else []
                    if number % max(1, self.total // 20) == 0:
                        self.memory.append(anonymous_bytes(self.pid))

    def ask(self, client: Any, chance: random.Random) -> str:
        """Empty where the answer is right; a 429 is obeyed and asked again."""
        picture, prompt, masks = chance.choice(self.truth)
        start = time.perf_counter()
        while True:
            if chance.random() < 0.5:
                answer = client.post("/v1/segment", files={"image": picture}, data={"prompt": prompt})
            else:
                url = {"url": "data:image/png;base64," + base64.b64encode(picture).decode()}
                parts = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": url}]
                answer = client.post(
                    "/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]}
                )
            if answer.status_code != 429:
                break
            time.sleep(int(answer.headers["retry-after"]))
        with self.lock:
            self.times_s.append(time.perf_counter() - start)
        if answer.status_code != 200:
            return f"good request: {answer.status_code} {answer.text[:200]}"
        told = answer.json()
        found = told["masks"] if "masks" in told else told["choices"][0]["message"]["masks"]
        return "" if [mask["rle"] for mask in found] == masks else f"other masks for {prompt!r}"

    def ask_badly(self, client: Any, number: int) -> tuple[str, str]:
        kinds = len(self.bad) + 1
        if number % kinds == kinds - 1:
            return "slow", "" if slow(self.address) else "a slow request was not ended"
        what, path, request = self.bad[number % kinds]
        answer = client.post(path, **request)
        try:
            sentence = answer.json()["error"]["message"]
        except (ValueError, KeyError):
            sentence = ""
        fine = 400 <= answer.status_code < 500 and sentence
        return what, "" if fine else f"{what}: {answer.status_code} {answer.text[:200]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument(
        "--warm-up",
        type=int,
        default=400,
        help="requests before memory is looked at; the allocator settles meanwhile",
    )
    asked = parser.parse_args()

    import httpx
    import pixelrt

    from scripts.page_screenshot import served

    segmenter = pixelrt.load(asked.bundle)
    lines = (ROOT / "calib_data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    truth = []
    for sample in map(json.loads, lines):
        file = ROOT / "calib_data" / sample["image"]
        masks = [
            dict(mask.rle()) for mask in segmenter.segment(segmenter.encode(file), sample["prompt"]).masks
        ]
        truth.append((file.read_bytes(), sample["prompt"], masks))
    limits = ("--max-body", "8", "--patience", str(PATIENCE_S))
    with served(asked.bundle, *limits) as (address, process):
        for total in (asked.warm_up, asked.requests):
            load = Load(address, process.pid, truth, total)
            start = time.perf_counter()
            clients = [threading.Thread(target=load.client, args=(seed,)) for seed in range(asked.clients)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            spent_s = time.perf_counter() - start
            print(f"{total} requests in {spent_s:.0f} s", file=sys.stderr)
            if total == asked.warm_up:
                before = anonymous_bytes(process.pid)
        after = anonymous_bytes(process.pid)
        metrics = httpx.get(address + "/metrics", timeout=60).text
    grown = after / before - 1
    times = sorted(load.times_s)
    counted = {
        name: next(
            float(line.split()[-1])
            for line in metrics.splitlines()
            if line.startswith(f"pixelrt_{name}_total ")
        )
        for name in ("encoder_runs", "frame_hits", "answers", "failures")
    }
    print(json.dumps({
        "requests": asked.requests, "clients": asked.clients, "answered": dict(load.codes), "wrong": load.wrong[:10],
        "pictures": len({picture for picture, _, _ in truth}), **counted,
        "memory_bytes": {"after_warm_up": before, "at_the_end": after, "grown": round(grown, 4),
                         "during": load.memory},
        "good_s": {"p50": times[len(times) // 2], "p99": times[int(len(times) * 0.99)]},
        "requests_per_s": asked.requests / spent_s,
    }, indent=2))  # fmt: skip
    sys.exit(bool(load.wrong or counted["failures"] or grown > 0.05))


if __name__ == "__main__":
    main()
