"""Options of `kvchat serve`: its own, and those of a chat that a server has too."""

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from kvchat.errors import KvchatError
from kvchat.settings.kinds import PATH, SIZE, one_of, tokens, whole
from kvchat.settings.option import option, options_of, shared
from kvchat.settings.options import OPTIONS, Options

SERVER = "Server"
KEY = "KVCHAT_API_KEY"  # in the environment, where no other user of the machine sees it


@dataclass(frozen=True)
class Settings:
    """Options of `kvchat serve`; those of a chat are read by `settings.config.settle`."""

    host: str = option("--host", SERVER, "Address to listen on (127.0.0.1).", default="127.0.0.1")
    port: int = option(
        "--port", SERVER, "Port (8321); 0: a free one.", whole(0, 65535), default=8321
    )
    api_key: str | None = option(
        "--api-key", SERVER, f"Key that clients must send; better in {KEY}."
    )
    origins: Sequence[str] = option(
        "--allow-origin",
        SERVER,
        "Origin of a page that may ask (http://localhost:3000); repeatable.",
        default=(),
        many=True,
    )
    askers: int = option(
        "--askers", SERVER, "Answers that are decoded together (4).", whole(1, 64), default=4
    )
    queue: int = option(
        "--queue", SERVER, "Requests that may wait (64).", whole(0, 10**6), default=64
    )
    long_message: int = option(
        "--long-message",
        SERVER,
        "A first message of so many tokens is taken as a document (1024); 0: never.",
        tokens(0),
        default=1024,
    )
    max_upload: int = option(
        "--max-upload", SERVER, "Largest document that is taken (64MiB).", SIZE, default=2**26
    )
    served: str | None = option(
        "--documents", SERVER, "Folder of the documents that clients have sent.", PATH
    )
    model: str | None = shared(Options, "model")
    revision: str | None = shared(Options, "revision")
    tokenizer: str | None = shared(Options, "tokenizer")
    chat_template: str | None = shared(Options, "chat_template")
    offline: bool = shared(Options, "offline")
    files: Sequence[str] = shared(Options, "files", help="A document; a model of its own.")
    overflow: str = shared(
        Options,
        "overflow",
        help="If a document exceeds the context window: an error, or it is read part by part.",
        kind=one_of("error", "stream"),
    )
    loader: str = shared(Options, "loader")
    encoding: str | None = shared(Options, "encoding")
    clean: bool = shared(Options, "clean")
    max_tokens: int | None = shared(Options, "max_tokens")
    method: str = shared(Options, "method")
    budget: str | None = shared(Options, "budget")
    method_options: Sequence[str] = shared(Options, "method_options")
    kv_bits: str | None = shared(Options, "kv_bits")
    ctx_size: int | None = shared(Options, "ctx_size")
    prefill_chunk: int | None = shared(Options, "prefill_chunk")
    prompt_cache: str = shared(Options, "prompt_cache")
    prompt_cache_dir: str | None = shared(Options, "prompt_cache_dir")
    temperature: float | None = shared(Options, "temperature")
    top_k: int | None = shared(Options, "top_k")
    top_p: float | None = shared(Options, "top_p")
    min_p: float | None = shared(Options, "min_p")
    repeat_penalty: float | None = shared(Options, "repeat_penalty")
    seed: int | None = shared(Options, "seed")
    device: str = shared(Options, "device")
    dtype: str = shared(Options, "dtype")
    weights: str = shared(Options, "weights")
    attention: str = shared(Options, "attention")
    kernels: str = shared(Options, "kernels")
    threads: int | None = shared(Options, "threads")
    mem_limit: int | None = shared(Options, "mem_limit")
    quiet: bool = shared(Options, "quiet")
    verbose: bool = shared(Options, "verbose")
    log_file: str | None = shared(Options, "log_file")

    @property
    def key(self) -> str:
        """The key that clients must send; empty: none."""
        return self.api_key or os.environ.get(KEY, "")

    @property
    def is_local(self) -> bool:
        """Whether this machine alone can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def require_safe(self) -> None:
        """Raise KvchatError("usage") for a server that others reach and nothing protects."""
        for origin in self.origins:
            if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s*]+", origin):
                raise KvchatError(
                    "usage",
                    f"--allow-origin {origin} is not one origin: scheme, host and port, no path",
                    "--allow-origin http://localhost:3000",
                )
        if not self.is_local and not self.key:
            raise KvchatError(
                "usage",
                f"--host {self.host} lets other machines in, and there is no key",
                f"{KEY}=SECRET kvchat serve --host {self.host}",
                "--host 127.0.0.1",
            )
        if self.key and (len(self.key) < 8 or not self.key.isascii() or not self.key.isprintable()):
            raise KvchatError(
                "usage", f"a key of {len(self.key)} characters is too easy: 8 or more, ASCII"
            )


CHAT = tuple(name for name in options_of(Settings) if name in OPTIONS)  # as in a chat
