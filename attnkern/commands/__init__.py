"""What the command line can do, one module per command.

add_arguments(parser)   declares its options
run(arguments)          does it and returns the exit code
"""


class CommandError(Exception):
    """Something the user can put right; the message is one line that says what to do. Exit code 2."""
