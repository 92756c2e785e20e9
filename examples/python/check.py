"""The checks of these examples: each prints what a call replied with, and ends the program if that is wrong."""

from typing import TypeVar

Value = TypeVar("Value")


def check(what: str, got: Value, expected: Value) -> Value:
    if got != expected:
        raise SystemExit(f"{what}: expected {expected!r}, got {got!r}")
    print(f"{what}: {got!r}")
    return got
