"""The command line, one module a group of commands. Each command imports what it needs when it is called."""
