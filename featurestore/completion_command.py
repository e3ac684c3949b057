"""``featurestore completion``: a script that has a shell complete commands and options, as click makes it."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from featurestore.errors import InvalidInputError

_PROGRAM = "featurestore"
_VARIABLE = "_FEATURESTORE_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script for SHELL that completes commands and options with the tab key.

    bash: eval "$(featurestore completion bash)" in ~/.bashrc; needs bash 4.4.

    zsh: eval "$(featurestore completion zsh)" in ~/.zshrc, after compinit.

    fish: featurestore completion fish > ~/.config/fish/completions/featurestore.fish

    Example: featurestore completion bash
    """
    made = get_completion_class(shell)
    if made is None:
        raise InvalidInputError(
            f"this version of click completes nothing for {shell}", "pip install --upgrade click"
        )
    click.echo(made(context.find_root().command, {}, _PROGRAM, _VARIABLE).source())
