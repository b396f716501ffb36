"""Ask a server, `pixelrt serve` or Ray Serve, and ask again where it could not answer.

python examples/ask_a_server.py URL [IMAGE] [PROMPT]
"""

import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from uuid import uuid4

AGAIN = (429, 500, 502, 503, 504)  # another time, or another replica, may answer


def ask(url, picture, tries=8, **fields):
    """The answer as JSON. A question changes nothing on a server: it may be asked any number of times."""
    edge, part = uuid4().hex, '--{}\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    body = part.format(edge, "image", '; filename="image"').encode() + picture + b"\r\n"
    body += "".join(part.format(edge, key, "") + value + "\r\n" for key, value in fields.items()).encode()
    body += f"--{edge}--\r\n".encode()
    head = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    for attempt in range(1, tries + 1):
        wait_s = 0.2 * 2**attempt
        try:
            request = urllib.request.Request(url + "/v1/segment", body, head)
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code not in AGAIN or attempt == tries:
                raise RuntimeError(f"{error.code}: {error.read().decode('utf-8', 'replace')}") from None
            wait_s = float(error.headers.get("Retry-After") or wait_s)
        except (OSError, http.client.HTTPException):  # gone, or cut off
            if attempt == tries:
                raise
        time.sleep(wait_s)


if __name__ == "__main__":
    url, *rest = sys.argv[1:]
    image = Path(rest[0]) if rest else Path(__file__).parents[1] / "calib_data" / "scene_01.png"
    answer = ask(url, image.read_bytes(), prompt=rest[1] if rest[1:] else "Segment the red circle.")
    print(answer["text"], *[(mask["label"], mask["box"]) for mask in answer["masks"]])
