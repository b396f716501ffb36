"""Ray Serve with `pixelrt.serve.ray_app`, on this machine alone: python ray_server.py PORT BUNDLE KEY=VALUE …

Prints {"pids": […]} of its replicas when it is up, and again for each line on stdin; ends with its stdin.
"""

import json
import os
import sys
from pathlib import Path

import ray
from pixelrt.serve.ray_app import app
from ray import serve


def replicas() -> list[int]:
    """Processes of our Ray: below this one."""
    parents, named = {}, []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, name, rest = (
                int(stat.parent.name),
                stat.parent.joinpath("cmdline").read_bytes(),
                stat.read_text(),
            )
        except OSError:  # it has just ended
            continue
        parents[pid] = int(rest.rpartition(")")[2].split()[1])
        if name.startswith(b"ray::ServeReplica:"):
            named.append(pid)
    ours = []
    for pid in named:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid():
            ours.append(pid)
    return sorted(ours)


def main() -> None:
    port, bundle, *given = sys.argv[1:]
    # The store is small: requests travel beside it.
    ray.init(num_cpus=4, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    args = {"bundle": bundle, **dict(one.split("=", 1) for one in given)}
    serve.run(app(args), name="pixelrt", route_prefix="/")
    print(json.dumps({"pids": replicas()}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"pids": replicas()}), flush=True)
    ray.shutdown()


main()
