"""Commands of the command line: each calls the library once and prints. `cli.COMMANDS` lists the commands."""
