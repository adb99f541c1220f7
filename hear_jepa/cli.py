"""`hear-jepa COMMAND …`: one table of commands, each imported only when it is called.

A command is a module with two functions: `add_arguments(parser)` and `run(arguments) -> exit code`.
"""

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from hear_jepa import __version__
from hear_jepa.errors import HearJepaError, printable

REFUSED, INTERRUPTED = 2, 130  # exit codes

COMMANDS = {  # name: (module, one line of help)
    "info": ("hear_jepa.commands.info", "print a checkpoint's configuration, licence, provenance and SHA-256"),
    "convert": ("hear_jepa.commands.convert", "turn a foreign checkpoint into ours"),
    "whiten": ("hear_jepa.commands.whiten", "make a checkpoint whose scenes are uncorrelated, by sounds of yours"),
    "embed": ("hear_jepa.commands.embed", "embed files and folders of sound"),
    "evaluate": ("hear_jepa.commands.evaluate", "score models on HEAR-format tasks"),
    "export": ("hear_jepa.commands.export", "write the model, front end included, for another runtime"),
    "publish": ("hear_jepa.commands.publish", "write a checkpoint as a folder for the Hugging Face Hub"),
    "show": ("hear_jepa.commands.show", "draw what the model hears in one file"),
    "search": ("hear_jepa.commands.search", "find in embedded sounds what is most like one"),
    "classify": ("hear_jepa.commands.classify", "train a classifier on labelled sounds, and label others"),
    "map": ("hear_jepa.commands.map", "draw a map of embedded sounds, as a page that plays them or a picture"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    named = argv[0] if argv and argv[0] in COMMANDS else ""
    return exit_code(lambda: _run(argv, named), f"hear-jepa {named}".rstrip())


def exit_code(run: Callable[[], int], name: str) -> int:
    """What `run` returns: 0, or 1 if some files failed.

    A mistake of the user's, and what the system refuses (a full disk, a read-only folder), is one line on stderr and 2;
    an interruption is 130. A closed pipe (`| head`) ends the printing silently.
    """
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        return 0
    except (HearJepaError, OSError) as error:
        print(f"{name}: {printable(str(error))}", file=sys.stderr)
        return REFUSED


def _run(argv: list[str], named: str) -> int:
    parser = argparse.ArgumentParser(prog="hear-jepa", description="Audio embeddings by JEPA.")
    parser.add_argument("--version", action="version", version=f"hear-jepa {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = None
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary.capitalize() + ".")
        if name == named:  # the other commands' libraries stay unloaded
            with interruptible():
                command = importlib.import_module(module)
            command.add_arguments(subparser)
    arguments = parser.parse_args(argv)
    assert command is not None, "the parser knows the same commands"
    return command.run(arguments)


def interruptible() -> AbstractContextManager[None]:
    """Ctrl-C ends the process at once, silently: imports turn a KeyboardInterrupt into errors of their own."""
    return signals_go_to(lambda *_: os._exit(INTERRUPTED), signal.SIGINT)


@contextmanager
def signals_go_to(handler: Callable[[int, Any], Any], *numbers: int) -> Iterator[None]:
    """Meanwhile these signals call the handler; in another thread than the main one, which may not say so, nothing."""
    main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if main_thread}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


if __name__ == "__main__":
    sys.exit(main())
