"""How a server is set up, checked at the door."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from pixelrt.errors import InputError


@dataclass(frozen=True)
class Settings:
    """Limits and manners of one server. Raises InputError where they do not fit together."""

    name: str  # of the model, as clients give it
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    token: str | None = None  # what clients send as `Authorization: Bearer`
    allow_anyone: bool = False  # bind to another host than this one without a token
    body_bytes: int = 32 << 20  # of one request
    pixels: int = 4096 * 4096  # of one picture
    prompt_chars: int = 4000  # of all words of a question together
    new_tokens: int = 512  # of one answer
    waiting: int = 32  # requests in the queue; further ones are answered 429
    connections: int = 128  # open at once
    batch: int = 8  # requests taken from the queue at once
    wait_ms: float = 5.0  # how long a batch that is not full waits for more
    frames_bytes: int = 1 << 30  # of encoded pictures that are kept
    patience_s: float = 30.0  # a client has this long to send a request, and to take each part of its answer
    drain_s: float = 30.0  # what is being answered has this long after SIGTERM

    def __post_init__(self) -> None:
        if self.token is not None and (len(self.token) < 8 or not self.token.isascii() or " " in self.token):
            raise InputError(
                "the token is shorter than 8 characters, or not plain ASCII without blanks. "
                "Make one: python3 -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        if not self.local and self.token is None and not self.allow_anyone:
            raise InputError(
                f"--host {self.host} can be reached from other machines, and no token is set. Give --token, "
                "or --allow-anyone where everyone who can reach this port may use it."
            )
        for field in (
            "body_bytes",
            "pixels",
            "prompt_chars",
            "new_tokens",
            "waiting",
            "connections",
            "batch",
        ):
            if getattr(self, field) < 1:
                raise InputError(f"{field} is {getattr(self, field)}. Give 1 or more.")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the port."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
