# make test       all tests, from nothing: makes .venv-test and .venv-compat first
# make check      ruff, and mypy (strict on runtime and kernels)
# make kernels    the host library of the kernels, and the GPU code where nvcc is at hand; needs no environment
# make tensorrt-check  installs TensorRT-RTX into build/ (95 MB) and builds engines of small models with it; no GPU needed
# make ros-check  installs rclpy into .venv-ros (280 MB; Python 3.11 to 3.13 on x86-64) and runs the node in a graph
# make triton-check  installs tritonserver into .venv-triton (300 MB) and asks it what pixelrt triton wrote
# make ray-check  installs Ray into .venv-ray (700 MB) and kills one of two replicas under load
# make gpu-check  builds the kernels, runs the tests marked gpu, times the kernels; writes benchmarks/results/gpu-check.json
# make clean      removes everything that was made here except bundles
#
# PIXELRT_PYTHON=PROGRAM  the Python to make the environments with, 3.10 to 3.13 (default: python3)

.PHONY: test check kernels tensorrt-check ros-check triton-check ray-check gpu-check clean
test: .compat
test check tensorrt-check ros-check triton-check ray-check gpu-check: .test

bin := .venv-test/bin
# ONNX Runtime 1.23.2 is the newest for Python 3.10 (JetPack 6); it runs the language graph's compatibility twin.
old := onnxruntime==1.23.2

.PHONY: .test .compat
.test:
	@scripts/venv.sh .venv-test cpu,export,train,dev
.compat:
	@scripts/venv.sh .venv-compat cpu $(old)

test:
	$(bin)/python -m pytest

check:
	$(bin)/ruff check .
	$(bin)/mypy

kernels:
	cd kernels && $(or $(PIXELRT_PYTHON),python3) -m pixelrt_kernels.build

# Beside the environment and not in it, so that `make test` is the same on every machine.
rtx := build/tensorrt-rtx
rtx_wheels := tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116
# The import comes first: without TensorRT-RTX its tests would skip, and nothing would be wrong.
tensorrt-check:
	[ -d $(rtx) ] || $(bin)/python -m pip --disable-pip-version-check install --quiet --no-deps --target $(rtx) $(rtx_wheels)
	PYTHONPATH=$(rtx) $(bin)/python -c 'import tensorrt_rtx_bindings'
	PYTHONPATH=$(rtx) $(bin)/python -m pytest -m tensorrt tests/build

# An environment of its own: these wheels start every Python of theirs twice, to set the path of their libraries.
ros := 'ros-rclpy[fastrtps]>=9.1,<10' 'ros-sensor-msgs>=5.5,<6' 'ros-common-interfaces>=5.5,<6'
ros-check:
	scripts/venv.sh .venv-ros cpu $(ros)
	$(bin)/python -m pytest tests/release/test_ros.py

# Its stub wants numpy 1.
triton-check:
	scripts/venv.sh .venv-triton cpu nvidia-pytriton==0.7.0
	$(bin)/python -m pytest tests/release/test_triton_server.py

ray-check:
	scripts/venv.sh .venv-ray cpu,ray
	$(bin)/python -m pytest tests/release/test_ray.py

gpu-check:
	$(bin)/python -m benchmarks.gpu_check

clean:
	rm -rf .venv .venv-test .venv-compat .venv-ros .venv-triton .venv-ray build dist kernels/pixelrt_kernels/built pixelrt-out .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
