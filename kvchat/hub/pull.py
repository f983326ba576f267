"""`kvchat models pull`: downloads a model's files through huggingface_hub into its cache."""

import errno
import hashlib
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
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

from kvchat.engine.model import gguf
from kvchat.engine.model.read import load_config
from kvchat.errors import KvchatError
from kvchat.hub import catalog, gguf_files
from kvchat.hub.find import QUANTISED, REPOSITORY
from kvchat.hub.pick import pick
from kvchat.settings import config
from kvchat.terminal.key_prompt import choose
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, counted, size
from kvchat.terminal.tty import somebody

T = TypeVar("T")
UNREACHED = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH)
BLOCK = 2**22  # bytes that are summed at a time


@dataclass(frozen=True)
class Remote:
    """A file of a repository: bytes, and its sha256 where the server knows it (large files)."""

    size: int
    sha256: str = ""


def run(name: str, revision: str | None, yes: bool, file: str | None = None) -> int:
    """Download a repository, the `repo` of an alias or a model of the catalog.

    Raises KvchatError("model").
    """
    screen = Screen(verbose=True)
    source = source_of(name)
    if download(source, revision, screen, yes, file or ""):
        known = name if not file and (catalog.entry(name) or source != name) else source
        wanted = f"{source.partition(':')[0]}:{gguf_files.stem(file)}" if file else known
        screen.tell(f"kvchat -m {wanted} book.txt")
    return 0


def download(
    source: str, revision: str | None, screen: Screen, yes: bool = False, file: str = ""
) -> bool:
    """Download from a repository after a question that tells its size. False if the answer is no.

    `source` is `org/repo`, or with the format of a GGUF file `org/repo:Q5_K_M`. Raises
    KvchatError("model"), or "usage" if there is nobody to ask.
    """
    repository, _, wanted = source.partition(":")
    with screen.busy(f"looking up {repository}"):
        there, architecture = explained(repository, lambda: contents(repository, revision))
    chosen = pick(repository, {name: each.size for name, each in there.items()}, wanted, file)
    if chosen.gguf and architecture and architecture not in gguf.FAMILIES:
        raise KvchatError(  # before gigabytes are on their way
            "model",
            f"{repository}: architecture {architecture!r} is not supported "
            f"(supported: {', '.join(gguf.FAMILIES)})",
            "kvchat models pull  (a table of models)",
            supported=[*gguf.FAMILIES],
        )
    files = {name: there[name] for name in chosen.files}
    total = sum(each.size for each in files.values())
    named = f" ({', '.join(files)})" if chosen.gguf and len(files) == 1 else ""
    screen.tell(f"{repository}: {counted(len(files), 'file')}{named}, {size(total)}")
    if chosen.why:
        screen.tell(chosen.why)
    require_disk(repository, total)
    if not yes and not confirmed(f"download {size(total)}? [y/N]"):
        screen.tell("nothing was downloaded")
        return False
    if not screen.live:
        disable_progress_bars()
    places: list[Path] = []
    for name, about in files.items():
        fetch = partial(hf_hub_download, repository, name, revision=revision)
        place = Path(explained(repository, fetch))
        if name == "config.json":
            load_config(place.parent)  # refused before gigabytes are on their way
        check_sum(repository, place, about, screen)
        places.append(place)
    if chosen.gguf:
        load_config(places[0])
    screen.tell(f"{source} is in {places[0] if chosen.gguf else places[0].parent}")
    return True


def check_sum(repository: str, file: Path, about: Remote, screen: Screen) -> None:
    """Raise KvchatError("model") for a file that is not what the server has; it is removed."""
    if not about.sha256:
        return
    digest = hashlib.sha256()
    with screen.busy(f"checking the sum of {file.name}"), file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() == about.sha256:
        return
    file.resolve().unlink(missing_ok=True)  # the blob that the name links to
    file.unlink(missing_ok=True)
    raise KvchatError(
        "model",
        f"{repository}: {file.name} came damaged (sha256 {digest.hexdigest()[:12]}…, expected "
        f"{about.sha256[:12]}…) and was removed",
        "pull again",
        sha256=digest.hexdigest(),
        expected=about.sha256,
    )


def source_of(name: str) -> str:
    """`org/repo` or `org/repo:FORMAT` of a name, an alias or a model of the catalog.

    Raises KvchatError("usage").
    """
    alias = config.load().models.get(name, {})
    known = catalog.entry(name)
    source: str = alias.get("repo", known.source if known else name)
    if not (REPOSITORY.fullmatch(source) or QUANTISED.fullmatch(source)):
        raise KvchatError(
            "usage",
            f"{clean(name)!r} is neither org/repo, nor an alias with `repo`, nor one of "
            f"{', '.join(each.name for each in catalog.entries())}",
            "kvchat models pull mistralai/Mistral-7B-Instruct-v0.3",
            "kvchat models pull  (a table of models)",
        )
    return source


def contents(repository: str, revision: str | None) -> tuple[dict[str, Remote], str]:
    """The files of a repository, and the architecture of its GGUF files as the server read it."""
    found = HfApi().model_info(repository, revision=revision, files_metadata=True)
    files = {
        file.rfilename: Remote(file.size or 0, file.lfs.sha256 if file.lfs else "")
        for file in found.siblings or ()
    }
    return files, str((found.gguf or {}).get("architecture") or "")


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
        if not _reached(error):
            raise KvchatError(
                "model",
                f"{repository} cannot be downloaded: no connection to {constants.ENDPOINT}",
                "pull again when the network is there: what has come stays",
                "-m model.gguf  (a file that was brought in another way)",
            ) from error
        reason = clean(str(error).strip().split("\n")[0] or repr(error))[:200]
        raise KvchatError(
            "model",
            f"{repository} cannot be downloaded: {reason}",
            "pull again: what has come stays",
        ) from error


def _reached(error: BaseException | None) -> bool:
    """Whether a server answered: False for a name that was not found or a port that is closed."""
    while error is not None:
        if isinstance(error, OSError) and (
            isinstance(error, socket.gaierror) or error.errno in UNREACHED
        ):
            return False
        error = error.__cause__ or error.__context__
    return True


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


def confirmed(question: str) -> bool:
    """Whether the person says yes. Raises KvchatError("usage") if there is nobody to ask."""
    if not somebody():
        raise KvchatError("usage", "nothing is downloaded unasked", "-y")
    return choose(question, "yn", "n", "n") == "y"
