"""The command ``lucid-deploy chat``: talk with a model in the terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._console import note, progress
from lucid_deploy.cli._generation_options import (
    SpeculationOptions,
    answer_options,
    as_token_ids,
    open_guides,
    speculation_options,
)
from lucid_deploy.cli._options import artifact_argument, runtime_options
from lucid_deploy.errors import LucidError

if TYPE_CHECKING:
    from lucid_deploy.batching.prompt_file import PromptDefaults
    from lucid_deploy.runtimes.options import RuntimeOptions


@click.command("chat", cls=Command)
@artifact_argument
@click.option("--system", metavar="TEXT", help="The system message, for models with a chat template.")
@click.option("--completion", is_flag=True, help="Continue one text, even if the model has a chat template.")
@runtime_options("runtime", "device", "provider", "kernels", "threads", "adapter", "allow_extrapolation")
@answer_options(512, 512, "Run prompts N tokens at a time.")
@speculation_options
def command(
    artifact: str,
    system: str | None,
    completion: bool,
    runtime: RuntimeOptions,
    answers: PromptDefaults,
    speculation: SpeculationOptions,
    prefill_chunk: int,
) -> None:
    """Talk with a model in the terminal.

    Type a line to get an answer; /help lists the commands. Ctrl-C stops an answer, Ctrl-D leaves. The conversation's
    cache is kept, so each turn runs only its new tokens. Without a chat template, or with --completion, the model
    continues one text, to which each line is added. Lines that come through a pipe are answered one after the other.
    --json-schema, --regex, --choice and --grammar constrain every answer.

    Example: lucid-deploy chat ./artifact --temperature 0.7
    """
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.artifact.chat import read_chat_templates
    from lucid_deploy.artifact.chat_process import ChatRenderer
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.cli._chat_loop import ChatSession, ChatTurns, CompletionTurns, Turns
    from lucid_deploy.generation.generate import Conversation

    opened = open_artifact(artifact)
    tokenizer = TextTokenizer(opened.directory)
    sampling = as_token_ids(answers, tokenizer)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with contextlib.ExitStack() as stack:
        has_template = read_chat_templates(opened.directory) is not None
        chats = has_template and not completion
        if system is not None and not chats:
            why = "with --completion" if completion else "the model has no chat template"
            raise LucidError(f"--system needs a chat template: {why}.")
        turns: Turns = CompletionTurns(tokenizer)
        if chats:
            try:
                render = stack.enter_context(ChatRenderer(opened.directory))
            except LucidError as error:
                raise LucidError(f"{error} Use --completion to let the model continue a text instead.") from error
            turns = ChatTurns(lambda messages: tokenizer.encode(render(messages), add_special_tokens=False))
        turns.begin(system)
        with progress("Loading the model"):
            session, drafters = speculation.open_session(opened, runtime)
        guides = open_guides(answers, session, tokenizer)
        conversation = Conversation(
            session,
            answers.max_new_tokens,
            sampling,
            prefill_chunk,
            answers.stop_at_eos,
            guides=guides,
            drafters=drafters,
        )
        if not has_template:
            note("The model has no chat template: it continues one text, to which each line is added.")
        if interactive:
            name = opened.directory.resolve().name
            note(f"{name}: {session.label}, {opened.manifest.numbers}. /help lists the commands, Ctrl-D leaves.")
            with contextlib.suppress(ImportError):  # Windows: the console edits lines itself
                import readline  # noqa: F401 (input() edits and recalls lines with it)
        ChatSession(conversation, turns, tokenizer, answers.stop, interactive).run()
