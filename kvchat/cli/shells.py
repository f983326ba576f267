"""`kvchat completion SHELL`: the script that a shell loads to complete kvchat."""

from typing import Annotated

import typer
from typer.completion import (  # type: ignore[attr-defined]
    completion_init,
    get_completion_script,
)

from kvchat.errors import KvchatError
from kvchat.terminal.text import clean

SHELLS = ("bash", "zsh", "fish", "powershell")
VARIABLE = "_KVCHAT_COMPLETE"  # set by the script when it asks


def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh, fish or powershell.")],
) -> int:
    """The completion script of a shell, for its startup file."""
    if shell not in SHELLS:
        raise KvchatError(
            "usage",
            f"no completion for {clean(shell)!r}; there is {', '.join(SHELLS)}",
            'eval "$(kvchat completion bash)"',
        )
    print(get_completion_script(prog_name="kvchat", complete_var=VARIABLE, shell=shell))
    return 0


def complete(app: typer.Typer) -> None:
    """Answer the shell that asks through the environment, and exit."""
    completion_init()
    typer.main.get_command(app).main(prog_name="kvchat", complete_var=VARIABLE)
