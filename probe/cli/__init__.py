"""What each command of the command line does: call the library once and print. `cli.COMMANDS` lists them."""
