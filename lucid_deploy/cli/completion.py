"""``lucid-deploy completion``."""

from __future__ import annotations

import click

from lucid_deploy.cli._command import Command


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script with which a shell completes commands and options.

    bash, in ~/.bashrc: eval "$(lucid-deploy completion bash)"

    zsh, in ~/.zshrc, after "autoload -U compinit; compinit": eval "$(lucid-deploy completion zsh)"

    fish, once: lucid-deploy completion fish > ~/.config/fish/completions/lucid-deploy.fish

    Example: lucid-deploy completion bash
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is not None:  # it is one of the three that Click brings
        script = kind(context.find_root().command, {}, "lucid-deploy", "_LUCID_DEPLOY_COMPLETE").source()
        click.echo(script, nl=False)
