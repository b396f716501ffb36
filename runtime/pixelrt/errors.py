"""What a user did wrong, in one sentence: what, got, wanted, do this. The program prints it and exits 2."""

from __future__ import annotations

# Import name of an optional dependency -> the extra of pixelrt that brings it.
EXTRA_OF_MODULE = {
    "onnxruntime": "cpu",
    "pycuda": "cuda",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt_rtx_bindings": "tensorrt-rtx",
    "torch": "export",
    "transformers": "export",
    "optimum": "export",
    "onnx": "export",
    "ml_dtypes": "export",
    "safetensors": "export",
    "sentencepiece": "export",
    "google": "export",
    "pixelrt_export": "export",
    "bitsandbytes": "nf4",
    "av": "video",
    "rosbags": "bag",
    "pycocotools": "eval",
    "scipy": "eval",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "pydantic": "serve",
    "python_multipart": "serve",
    "ray": "ray",
}


class InputError(ValueError):
    """Bad input: a picture, prompt, folder or option. The message says it all; no traceback is needed."""


class PixelrtWarning(UserWarning):
    """Something that works, but not as well as it could; says what to do. The program prints it in one line."""


class MissingExtra(InputError):
    """An optional dependency is absent; the message ends with the pip line that brings it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed. Run: pip install 'pixelrt[{extra}]'")
        self.extra = extra

    @classmethod
    def from_import(cls, error: ModuleNotFoundError) -> MissingExtra | None:
        """The same failure in the user's words, or None where no extra brings it (a fault of ours)."""
        module = (error.name or "").partition(".")[0]
        extra = EXTRA_OF_MODULE.get(module)
        return cls(module, extra) if extra else None
