"""What a model's generation_config.json says: sampling defaults and end tokens."""

from dataclasses import replace
from typing import Any

from kvchat.engine.model.json_values import read_json, token_ids
from kvchat.errors import KvchatError
from kvchat.hub.find import Model
from kvchat.settings.options import OPTIONS, SAMPLING, Options

FILE = "generation_config.json"


def with_model_defaults(options: Options, model: Model) -> tuple[Options, list[int]]:
    """Options with the model's sampling defaults where nobody says otherwise, and its end tokens.

    Raises KvchatError("model") for values there that are not of their kind.
    """
    path = model.path / FILE
    raw: dict[str, Any] = read_json(path) if path.exists() else {}
    # a checkpoint that does not sample by default is greedy, whatever else it says
    sampled = raw if raw.get("do_sample") else {}
    named = {name: sampled.get(name) for name in ("temperature", "top_k", "top_p", "min_p")}
    named["repeat_penalty"] = raw.get("repetition_penalty")
    if sampled and named["temperature"] is None:
        named["temperature"] = 1.0
    found: dict[str, Any] = {}
    for name in SAMPLING:
        value = named.get(name)
        if value is not None and getattr(options, name) is None:
            if not isinstance(value, int | float):
                raise KvchatError("model", f"{path}: {name} is {value!r:.60}, no number")
            try:
                found[name] = OPTIONS[name].kind.read(name, value)
            except KvchatError as error:
                raise KvchatError("model", f"{path}: {error.message}") from None
    origins = {**options.origins, **dict.fromkeys(found, FILE)}
    try:
        ends = token_ids(raw.get("eos_token_id"))
    except ValueError as error:
        raise KvchatError("model", f"{path}: eos_token_id: {error}") from None
    return replace(options, **found, origins=origins), list(ends)
