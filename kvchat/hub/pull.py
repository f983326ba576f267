"""`kvchat models pull`: downloads a model's files through huggingface_hub into its cache."""

import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from kvchat.engine.model.read import load_config
from kvchat.errors import KvchatError
from kvchat.hub.find import REPOSITORY
from kvchat.settings import config
from kvchat.terminal.key_prompt import choose
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, size

T = TypeVar("T")
# Everything that kvchat reads from a model's folder, small files first.
SMALL = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|chat_template|"
    r"model\.safetensors\.index)\.json|tokenizer\.model|chat_template\.jinja"
)
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


def run(name: str, revision: str | None, yes: bool) -> int:
    """Download a repository or the `repo` of an alias. Raises KvchatError("model")."""
    screen = Screen(verbose=True)
    if download(repository_of(name), revision, screen, yes):
        screen.tell(f"kvchat -m {name} book.txt")
    return 0


def download(repository: str, revision: str | None, screen: Screen, yes: bool = False) -> bool:
    """Download a repository after a question that tells its size. False if the answer is no.

    Raises KvchatError("model"), or "usage" if there is nobody to ask.
    """
    with screen.busy(f"looking up {repository}"):
        files = explained(repository, lambda: contents(repository, revision))
    total = sum(files.values())
    screen.tell(f"{repository}: {len(files)} files, {size(total)}")
    require_disk(repository, total)
    if not yes and not confirmed(f"download {size(total)}? [y/N]"):
        screen.tell("nothing was downloaded")
        return False
    if not screen.live:
        disable_progress_bars()
    for file in files:
        fetch = partial(hf_hub_download, repository, file, revision=revision)
        folder = Path(explained(repository, fetch)).parent
        if file == "config.json":
            load_config(folder)  # refused before gigabytes are on their way
    screen.tell(f"{repository} is in {folder}")
    return True


def repository_of(name: str) -> str:
    """`org/repo` of a name or an alias. Raises KvchatError("usage")."""
    alias = config.load().models.get(name, {})
    repository: str = alias.get("repo", name)
    if not REPOSITORY.fullmatch(repository):
        raise KvchatError(
            "usage",
            f"{clean(name)!r} is neither org/repo nor an alias with `repo`",
            "kvchat models pull mistralai/Mistral-7B-Instruct-v0.3",
        )
    return repository


def contents(repository: str, revision: str | None) -> dict[str, int]:
    """The files that kvchat needs with their bytes, config.json and small ones first."""
    found = HfApi().model_info(repository, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    small = {name: count for name, count in sizes.items() if SMALL.fullmatch(name)}
    weights = {name: count for name, count in sizes.items() if WEIGHTS.fullmatch(name)}
    for what, there in (("config.json", "config.json" in small), ("safetensors", bool(weights))):
        if not there:
            raise KvchatError("model", f"{repository} has no {what}: kvchat cannot read it")
    first = {"config.json": small.pop("config.json")}
    return first | small | dict(sorted(weights.items()))


def explained(repository: str, work: Callable[[], T]) -> T:
    """Do `work`; what can go wrong between here and Hugging Face is said in a sentence."""
    try:
        return work()
    except KvchatError:
        raise
    except GatedRepoError:
        raise KvchatError(
            "model",
            f"{repository} is gated: its owner asks you to accept conditions first",
            f"accept them at {constants.ENDPOINT}/{repository}",
            "then `hf auth login`, or HF_TOKEN=…, and pull again",
        ) from None
    except RevisionNotFoundError:
        raise KvchatError("model", f"{repository} has no such revision") from None
    except RepositoryNotFoundError:
        raise KvchatError(
            "model",
            f"{repository} is not there, or is private",
            "look at the name",
            "`hf auth login`, if it is private",
        ) from None
    except OfflineModeIsEnabled:
        raise KvchatError("model", "HF_HUB_OFFLINE is set: nothing is downloaded") from None
    except Exception as error:  # the library passes on errors of whatever speaks HTTP for it
        reason = clean(str(error).strip().split("\n")[0] or repr(error))[:200]
        raise KvchatError(
            "model",
            f"{repository} cannot be downloaded: {reason}",
            "pull again: what has come stays",
        ) from error


def require_disk(repository: str, needed: int) -> None:
    """Raise KvchatError("model") if the cache's disk has less room than is needed."""
    folder = Path(constants.HF_HUB_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise KvchatError(
            "model",
            f"{repository} needs {size(needed)}; {size(free)} are free in {folder}",
            "HF_HOME=/another/disk",
        )


def somebody() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirmed(question: str) -> bool:
    """Whether the person says yes. Raises KvchatError("usage") if there is nobody to ask."""
    if not somebody():
        raise KvchatError("usage", "nothing is downloaded unasked", "-y")
    return choose(question, "yn", "n", "n") == "y"
