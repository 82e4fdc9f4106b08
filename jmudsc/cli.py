"""Command line: all commands, and what is done before and after one.

JAX, numpy and whatever needs them are imported inside the commands, so that help comes
at once.
"""

import importlib.metadata
import logging
import os
import sys

import tyro

from jmudsc.commands.compare import compare
from jmudsc.commands.convert import convert
from jmudsc.commands.demo import demo
from jmudsc.commands.evaluate import evaluate
from jmudsc.commands.experiment import experiment
from jmudsc.commands.init import init
from jmudsc.commands.landscape import landscape
from jmudsc.commands.lora import lora
from jmudsc.commands.merge import merge
from jmudsc.commands.plan import plan
from jmudsc.commands.soup import soup
from jmudsc.commands.spec import spec
from jmudsc.commands.values import told
from jmudsc.compiled import cache_settings

_DESCRIPTION = (
    "Merge networks trained apart, with no training. `jmudsc COMMAND --help` explains "
    "a command, `jmudsc --version` prints the version."
)

COMMANDS = {
    command.__name__: command
    for command in (
        compare,
        convert,
        demo,
        evaluate,
        experiment,
        init,
        landscape,
        lora,
        merge,
        plan,
        soup,
        spec,
    )
}


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--version"]:
        print(f"jmudsc {importlib.metadata.version('jmudsc')}")
        return
    logging.basicConfig(format="%(message)s")
    os.environ.update(cache_settings(os.environ))  # JAX is not imported yet
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="jmudsc", description=_DESCRIPTION
        )
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"jmudsc: {told(error)}")
    except KeyboardInterrupt:
        sys.exit(
            "jmudsc: interrupted. Start merge or experiment again to go on from here."
        )
