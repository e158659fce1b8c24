"""Single values as JSON has them, or as text."""

from airflow_dai_provider.emulator.errors import wrong_value


def read_text(name: str, value: object) -> str:
    """Read a text that is not empty.

    :param name: what the value is called.
    :param value: what was given.
    :raises ValueError: if it is something else.
    """
    if not isinstance(value, str) or not value:
        raise wrong_value(name, value, "a text")
    return value


def read_whole(name: str, value: object) -> int:
    """Read a whole number.

    :param name: what the value is called.
    :param value: what was given, a number or its text.
    :raises ValueError: if it is something else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(value if isinstance(value, str) else "")
    except ValueError:
        raise wrong_value(name, value, "a whole number") from None


def read_number(name: str, value: object) -> float:
    """Read a number; ``inf`` is one.

    :param name: what the value is called.
    :param value: what was given, a number or its text.
    :raises ValueError: if it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong_value(name, value, "a number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise wrong_value(name, value, "a number") from None


def read_flag(name: str, value: object) -> bool:
    """Read a flag.

    :param name: what the value is called.
    :param value: what was given, true or false or their text.
    :raises ValueError: if it is something else.
    """
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise wrong_value(name, value, "true or false")
    return value == "true"
