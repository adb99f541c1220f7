"""The commands of `hear-jepa`: arguments in, a call, nothing else. One file a command."""
