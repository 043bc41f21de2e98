"""``python -m lucid_deploy.cli``: the command line without its installed script."""

from lucid_deploy.start import main

main()
