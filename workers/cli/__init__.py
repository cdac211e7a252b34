"""The command line: one module a subject, registered in `main.COMMANDS`."""
