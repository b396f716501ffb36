"""Who is let in: tokens, origins, addresses; and the page, which runs its own script alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pixelrt.cli import main
from pixelrt.errors import InputError
from pixelrt.palette import colours

httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from pixelrt.serve.server import bind  # noqa: E402
from pixelrt.serve.settings import Settings  # noqa: E402

from tests.runtime.served import error_of, form, service, talk  # noqa: E402


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer ", "secret-token", "Basic secret-token"])
def test_a_wrong_token(given: str | None) -> None:
    with service(token="secret-token", host="0.0.0.0") as served:

        async def script(client: Any) -> Any:
            headers = {} if given is None else {"Authorization": given}
            paths = ("/v1/models", "/metrics", "/openapi.json", "/nothing")
            closed = [await client.get(path, headers=headers) for path in paths]
            closed.append(await client.post("/v1/segment", headers=headers, **form()))
            opened = [await client.get(path) for path in ("/", "/healthz", "/readyz")]
            right = await client.get("/v1/models", headers={"Authorization": "Bearer secret-token"})
            return closed, [*opened, right]

        closed, opened = talk(served, script, base_url="http://gpu-box:8000")
    for answer in closed:
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert "token is missing or wrong" in error_of(answer)
    assert all(answer.status_code == 200 for answer in opened)


def test_another_sites_page_is_refused() -> None:
    """A page that the user of this machine looks at must not ask in their name, nor under a name that leads here."""
    with service() as served:

        async def script(client: Any) -> Any:
            origins = [{"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}]
            closed = [await client.post("/v1/segment", headers=headers, **form()) for headers in origins]
            own = [{"Origin": "http://localhost"}, {"Host": "127.0.0.1:8000"}, {"Host": "[::1]:8000"}, {}]
            return closed, [await client.post("/v1/segment", headers=headers, **form()) for headers in own]

        closed, opened = talk(served, script)
    assert [answer.status_code for answer in closed] == [403] * 3 and error_of(closed[0])
    assert [answer.status_code for answer in opened] == [200] * 4


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gpu-box"])
def test_no_token_for_others(host: str) -> None:
    with pytest.raises(InputError, match="can be reached from other machines, and no token is set"):
        Settings("m", host=host)
    assert not Settings("m", host=host, token="long-enough").local
    assert Settings("m", host=host, allow_anyone=True)
    done = CliRunner().invoke(main, ["serve", "nowhere", "--host", host])
    assert done.exit_code == 2 and "no token is set" in done.output


def test_settings_are_checked() -> None:
    for local in ("localhost", "127.0.0.1", "127.9.9.9", "::1"):
        assert Settings("m", host=local).local
    for token in ("short", "has a blank in it", "ünïcödé-token"):
        with pytest.raises(InputError, match="the token is shorter"):
            Settings("m", token=token)


def test_the_port_is_taken() -> None:
    with (
        bind(Settings("m", port=0)) as taken,
        pytest.raises(InputError, match="Choose another --host or --port"),
    ):
        bind(Settings("m", port=taken.getsockname()[1]))


def test_the_extra_is_missing(tmp_path: Path) -> None:
    code = (
        "import sys\nfor name in ('fastapi', 'uvicorn', 'prometheus_client'): sys.modules[name] = None\n"
        "from pixelrt.cli import main\nmain(['serve', 'nowhere'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "pip install 'pixelrt[serve]'" in done.stderr, done.stderr


def test_the_page_runs_its_own_script_alone() -> None:
    with service() as served:

        async def script(client: Any) -> Any:
            return await client.get("/")

        answer = talk(served, script)
    text, policy = answer.text, answer.headers["content-security-policy"]
    assert policy.count("'sha256-") == 2 and "unsafe" not in policy and "default-src 'none'" in policy
    assert (
        "style=" not in text
        and "http://" not in text.replace("http://www.w3.org", "")
        and "https://" not in text
    )
    assert 'COLOURS = "' + " ".join(f"{r:02x}{g:02x}{b:02x}" for r, g, b in colours(24)) + '"' in text
