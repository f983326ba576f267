"""How answers are drawn: flags over the config over generation_config.json."""

from typing import Any

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.model.config import read_json
from kvchat.engine.sizes import MAX_TOKENS
from kvchat.errors import KvchatError
from kvchat.hub.find import Model
from kvchat.settings.options import Options
from kvchat.settings.settings import SAMPLING, Settings

FILE = "generation_config.json"


def generation_settings(model: Model, options: Options) -> tuple[Settings, list[int]]:
    """Settings with their origins, and the end tokens that generation_config.json names.

    Raises KvchatError("model") for values there that are no numbers, "usage" for bad flags.
    """
    path = model.folder / FILE
    raw: dict[str, Any] = read_json(path) if path.exists() else {}
    # a checkpoint that does not sample by default is greedy, whatever else it says
    sampled = raw if raw.get("do_sample") else {}
    named = {name: sampled.get(name) for name in ("temperature", "top_k", "top_p", "min_p")}
    named["repeat_penalty"] = raw.get("repetition_penalty")
    if sampled and named["temperature"] is None:
        named["temperature"] = 1.0
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name in SAMPLING:
        given, own = getattr(options, name), named.get(name)
        if given is not None:
            values[name], origins[name] = given, options.origins.get(name, "flag")
        elif own is not None:
            if not isinstance(own, int | float) or isinstance(own, bool):
                raise KvchatError("model", f"{path}: {name} is {own!r}, not a number")
            values[name], origins[name] = own, FILE
    for name in ("max_tokens", "stop", "stats", "markdown", "theme"):
        if name in options.origins:
            origins[name] = options.origins[name]
    settings = Settings(
        Sampling(**values),
        options.max_tokens or MAX_TOKENS,
        tuple(options.stop),
        options.stats,
        options.markdown,
        options.theme,
        origins,
    )
    ends = raw.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return settings, [int(end) for end in listed]
