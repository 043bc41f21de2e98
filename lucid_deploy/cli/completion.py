"""``lucid-deploy completion``.

The scripts ask the program as click answers: a line ``type,value`` for each word (bash; fish adds a tab and its help),
or three lines, type, value and help (zsh). They are not click's, which lose ``--option=`` in front of a value: with
them zsh put the value in place of the whole word, bash and fish found nothing.
"""

from __future__ import annotations

import click

from lucid_deploy.cli._command import Command

# COMP_WORDBREAKS has "=": "--option=va" comes as three words of which the last is completed, and is asked for as one.
_BASH = r"""
_lucid_deploy_completion() {
    local IFS=$'\n' word line open=
    local -a asked
    for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
        if [[ $word == "=" && ${#asked[@]} -gt 0 && ${asked[${#asked[@]}-1]} == --* ]]; then
            asked[${#asked[@]}-1]+="=" open=1
        elif [[ $open ]]; then
            asked[${#asked[@]}-1]+=$word open=
        else
            asked+=("$word")
        fi
    done
    COMPREPLY=()
    while read -r line; do
        case $line in
            dir,*) compopt -o dirnames ;;
            file,*) compopt -o default ;;
            plain,*) COMPREPLY+=("${line#plain,}") ;;
        esac
    done < <(env COMP_WORDS="${asked[*]}" COMP_CWORD=$((${#asked[@]} - 1)) \
        _LUCID_DEPLOY_COMPLETE=bash_complete "$1")
}
complete -o nosort -F _lucid_deploy_completion lucid-deploy
"""

_ZSH = r"""#compdef lucid-deploy
_lucid_deploy_completion() {
    local -a answer plain described
    local kind value help
    (( $+commands[lucid-deploy] )) || return 1
    answer=("${(@f)$(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT - 1)) \
        _LUCID_DEPLOY_COMPLETE=zsh_complete lucid-deploy)}")
    [[ $PREFIX == --*=* ]] && compset -P 1 '*='
    for kind value help in "${(@)answer}"; do
        case $kind in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain) [[ $help == _ ]] && plain+=("$value") || described+=("$value:$help") ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described
    (( $#plain )) && compadd -V unsorted -a plain
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _lucid_deploy_completion "$@"
else
    compdef _lucid_deploy_completion lucid-deploy
fi
"""

_FISH = r"""function _lucid_deploy_completion
    set -l before (string match -r -- '^--[^=]+=' (commandline -ct))
    for line in (COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -ct) \
        _LUCID_DEPLOY_COMPLETE=fish_complete lucid-deploy)
        set -l answer (string split -m 1 "," -- $line)
        switch $answer[1]
            case dir
                printf "$before%s\n" (__fish_complete_directories $answer[2])
            case file
                printf "$before%s\n" (__fish_complete_path $answer[2])
            case plain
                printf "$before%s\n" $answer[2]
        end
    end
end
complete --no-files --command lucid-deploy --arguments "(_lucid_deploy_completion)"
"""
_SCRIPTS = {"bash": _BASH.lstrip(), "zsh": _ZSH, "fish": _FISH}


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(list(_SCRIPTS)))
def command(shell: str) -> None:
    """Print what makes a shell complete commands and options.

    bash, in ~/.bashrc: eval "$(lucid-deploy completion bash)"

    zsh, in ~/.zshrc, after "autoload -U compinit; compinit": eval "$(lucid-deploy completion zsh)"

    fish, once: lucid-deploy completion fish > ~/.config/fish/completions/lucid-deploy.fish

    Example: lucid-deploy completion bash
    """
    click.echo(_SCRIPTS[shell], nl=False)
