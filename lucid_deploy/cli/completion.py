"""``lucid-deploy completion``."""

from __future__ import annotations

import click

from lucid_deploy.cli._command import Command


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print what makes a shell complete commands and options.

    bash, in ~/.bashrc: eval "$(lucid-deploy completion bash)"

    zsh, in ~/.zshrc, after "autoload -U compinit; compinit": eval "$(lucid-deploy completion zsh)"

    fish, once: lucid-deploy completion fish > ~/.config/fish/completions/lucid-deploy.fish

    Example: lucid-deploy completion bash
    """
    from click.shell_completion import get_completion_class

    program = click.get_current_context().find_root()
    kind = get_completion_class(shell)
    assert kind is not None
    name = "lucid-deploy"
    click.echo(kind(program.command, {}, name, "_LUCID_DEPLOY_COMPLETE").source())
