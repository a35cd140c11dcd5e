"""The command `heed`: one thin subcommand per capability."""
