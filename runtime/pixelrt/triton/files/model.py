"""The door between Triton's Python backend and pixelrt, which must be installed for the Python of this server."""

import triton_python_backend_utils as pb_utils

try:
    from pixelrt.triton.front import Front
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed for the server's Python. Run there: pip install 'pixelrt[cpu]'"
    ) from error


class TritonPythonModel:
    def initialize(self, args):
        self.front = Front(args, pb_utils)

    def execute(self, requests):
        return self.front(requests)
