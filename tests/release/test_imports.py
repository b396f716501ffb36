"""Who may import whom: export -> runtime -> kernels, never back; each heavy package only where it belongs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "pixelrt_kernels": ROOT / "kernels" / "pixelrt_kernels",
    "pixelrt": ROOT / "runtime" / "pixelrt",
    "pixelrt_export": ROOT / "export" / "pixelrt_export",
}
ARROWS = {
    "pixelrt_kernels": set(),
    "pixelrt": {"pixelrt_kernels"},
    "pixelrt_export": {"pixelrt", "pixelrt_kernels"},
}
# Package -> the only places below runtime/pixelrt that may import it.
RUNTIME_ONLY_IN = {
    "onnxruntime": ("engine_ort.py",),
    "tensorrt": ("tensorrt.py", "engine_trt.py"),
    "tensorrt_rtx": ("tensorrt.py", "engine_trt.py"),
    "pycuda": ("cuda.py",),
    "click": ("cli",),
    "av": ("frames.py",),
    "rosbags": ("bag/recording.py",),
    "rclpy": ("ros/node.py",),
    "diagnostic_msgs": ("ros/node.py",),
    "rcl_interfaces": ("ros/node.py",),
    "sensor_msgs": ("ros/node.py",),
    "std_msgs": ("ros/node.py",),
    "pycocotools": ("evaluation/coco_api.py",),
    "scipy": ("evaluation/matching.py",),
    "pynvml": ("bench/machine.py",),
    "fastapi": ("serve",),
    "starlette": ("serve",),
    "pydantic": ("serve",),
    "uvicorn": ("serve",),
    "prometheus_client": ("serve",),
    "ray": ("serve/ray_app.py",),
    "triton_python_backend_utils": ("triton/files/model.py",),
    "tritonclient": ("triton/files/client.py",),
}
RUNTIME_EVERYWHERE = {"numpy", "PIL", "tokenizers"}
NEVER_BELOW_EXPORT = {"torch", "transformers", "onnx", "optimum", "safetensors", "sentencepiece", "ml_dtypes"}
# Below export/pixelrt_export torch belongs to the reference, what compares with it, training, and reading pickles.
TORCH_ONLY_IN = (
    "reference",
    "tiny",
    "shards.py",
    "verify/pixellm.py",
    "verify/psalm.py",
    "quantize/nf4.py",  # bitsandbytes takes tensors
)
STANDARD = __import__("sys").stdlib_module_names

Import = tuple[str, Path, int]


def files_of(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def imports(file: Path, package: str) -> Iterator[Import]:
    """(top-level module, file, line) of every import statement, also of those inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], file, node.lineno
        elif isinstance(node, ast.ImportFrom):
            module = package if node.level else str(node.module).partition(".")[0]
            yield module, file, node.lineno


def all_imports(package: str) -> list[Import]:
    return [found for file in files_of(package) for found in imports(file, package)]


def inside(file: Path, package: str, places: tuple[str, ...]) -> bool:
    """places: files and folders, by their path in the package."""
    path = file.relative_to(PACKAGES[package])
    return any(path == Path(place) or Path(place) in path.parents for place in places)


def listed(found: list[Import]) -> list[str]:
    return [f"{file.relative_to(ROOT)}:{line} imports {module}" for module, file, line in found]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_arrows(package: str) -> None:
    assert files_of(package)
    others = set(PACKAGES) - ARROWS[package] - {package}
    assert not listed([found for found in all_imports(package) if found[0] in others])


@pytest.mark.parametrize("package", ["pixelrt", "pixelrt_kernels"])
def test_nothing_of_the_export_side_below_it(package: str) -> None:
    assert not listed([found for found in all_imports(package) if found[0] in NEVER_BELOW_EXPORT])


@pytest.mark.parametrize("module", RUNTIME_ONLY_IN)
def test_heavy_packages_of_the_runtime_only_in_their_files(module: str) -> None:
    places = RUNTIME_ONLY_IN[module]
    found = [f for f in all_imports("pixelrt") if f[0] == module and not inside(f[1], "pixelrt", places)]
    assert not listed(found)


def test_the_runtime_imports_nothing_that_is_not_named_here() -> None:
    known = STANDARD | set(PACKAGES) | RUNTIME_EVERYWHERE | set(RUNTIME_ONLY_IN)
    assert not listed([found for found in all_imports("pixelrt") if found[0] not in known])


def test_kernels_import_numpy_alone() -> None:
    known = STANDARD | {"pixelrt_kernels", "numpy"}
    assert not listed([found for found in all_imports("pixelrt_kernels") if found[0] not in known])


def test_torch_in_export_only_where_it_belongs() -> None:
    found = [f for f in all_imports("pixelrt_export") if f[0] == "torch"]
    assert found, "no file imports torch: the test looks in the wrong place"
    assert not listed([f for f in found if not inside(f[1], "pixelrt_export", TORCH_ONLY_IN)])


def test_the_top_folders_are_no_packages() -> None:
    """An importable `kernels` would shadow the package of that name."""
    assert not [
        folder for folder in ("export", "runtime", "kernels") if (ROOT / folder / "__init__.py").exists()
    ]
