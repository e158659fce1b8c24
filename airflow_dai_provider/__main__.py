"""``python -m airflow_dai_provider``: the commands of ``airflow dai``, on every version of Airflow."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    :param arguments: of the command line, without the name of the program; by default those of this process.
    :raises SystemExit: with the exit code, unless it is 0.
    """
    from airflow.cli.cli_config import DefaultHelpParser

    from airflow_dai_provider.cli.definition import EXIT_CODES, dai_commands

    (group,) = dai_commands()
    parser = DefaultHelpParser("python -m airflow_dai_provider", description=group.help, epilog=EXIT_CODES)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in group.subcommands:
        texts = {"help": command.help, "description": command.description, "epilog": command.epilog}
        subparser = subparsers.add_parser(command.name, **texts)
        for argument in command.args:
            argument.add_to_parser(subparser)
        subparser.set_defaults(func=command.func)
    parsed = parser.parse_args(arguments)
    parsed.func(parsed)


if __name__ == "__main__":
    main()
