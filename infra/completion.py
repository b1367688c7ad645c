"""`ackline completion`: completes commands, options and, where a command knows how, what is in the database."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "ackline"
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what SHELL needs to complete `ackline` on the Tab key.

    \b
    bash  echo 'eval "$(ackline completion bash)"' >> ~/.bashrc
    zsh   echo 'eval "$(ackline completion zsh)"' >> ~/.zshrc
    fish  ackline completion fish > ~/.config/fish/completions/ackline.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101
    root = click.get_current_context().find_root().command
    click.echo(found(root, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())
