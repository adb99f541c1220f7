"""`hear-jepa COMMAND …`: one table of commands, each imported only when it is called.

A command is a module with two functions: `add_arguments(parser)` and `run(arguments) -> exit code`.
"""

import argparse
import importlib
import sys

from hear_jepa import __version__
from hear_jepa.errors import HearJepaError

COMMANDS = {  # name: (module, one line of help)
    "info": ("hear_jepa.commands.info", "print a checkpoint's configuration, provenance and SHA-256"),
    "convert": ("hear_jepa.commands.convert", "turn a foreign checkpoint into ours"),
    "embed": ("hear_jepa.commands.embed", "embed files and folders of sound"),
    "evaluate": ("hear_jepa.commands.evaluate", "score models on HEAR-format tasks"),
    "export": ("hear_jepa.commands.export", "write the model, front end included, for another runtime"),
    "show": ("hear_jepa.commands.show", "draw what the model hears in one file"),
    "map": ("hear_jepa.commands.map", "draw a 2-D map of a file of embeddings"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; a mistake of the user's becomes one line on stderr and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="hear-jepa", description="Audio embeddings by JEPA.")
    parser.add_argument("--version", action="version", version=f"hear-jepa {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    named = argv[0] if argv else ""
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary.capitalize() + ".")
        if name == named:  # the other commands' libraries stay unloaded
            command = importlib.import_module(module)
            command.add_arguments(subparser)
    arguments = parser.parse_args(argv)
    try:
        return command.run(arguments)
    except HearJepaError as error:
        print(f"hear-jepa {named}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
