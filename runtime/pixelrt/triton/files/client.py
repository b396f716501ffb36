"""Ask about a picture: python client.py IMAGE "Segment the mug." [HOST:PORT]

pip install 'tritonclient[http]'
"""

import json
import sys

import numpy as np
import tritonclient.http as triton

MODEL = "@NAME@"


def ask(client, picture, query):
    """picture: bytes of a file. query: {"prompt": …}, or a task with its keys (pixelrt's docs/serving.md).

    Gives the answer as /v1/segment of `pixelrt serve` does, and its masks (N, H, W). Raises InferenceServerException;
    its message is a sentence.
    """
    inputs = []
    for name, value in (("image", picture), ("query", json.dumps(query).encode())):
        inputs.append(triton.InferInput(name, [1, 1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([[value]], np.object_))
    # Leave `masks` out where run lengths do: `answer` has them as COCO RLE.
    outputs = [triton.InferRequestedOutput(name) for name in ("answer", "masks")]
    result = client.infer(MODEL, inputs, outputs=outputs)
    return json.loads(result.as_numpy("answer")[0, 0]), result.as_numpy("masks")[0]


if __name__ == "__main__":
    image, prompt, url = [*sys.argv[1:], "localhost:8000"][:3]
    with open(image, "rb") as file:
        answer, masks = ask(triton.InferenceServerClient(url), file.read(), {"prompt": prompt})
    print(answer["text"])
    for told, mask in zip(answer["masks"], masks, strict=True):
        print(told["label"], told["score"], told["box"], mask.sum(), "pixels")
