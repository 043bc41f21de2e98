"""``python -m lucid_deploy.cli``: the command line without its installed script."""

from lucid_deploy.cli import main

main()
