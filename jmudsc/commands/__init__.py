"""Commands: what the command line can do, one function a command, no arithmetic."""
