"""Commands and groups of them as refloss has them: help that is whole, and the options that all of them take."""

from __future__ import annotations

import functools
import sys
from typing import Any

from typer.core import TyperCommand, TyperGroup

from refloss.commands import telling

_NAMES = 20  # columns for names of commands; what they do stands beside them if its longest word has room there


@functools.cache
def _everywhere() -> tuple[Any, ...]:
    return tuple(telling.options())


class Command(TyperCommand):
    """A command with -v and -q."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its own parameters, those of every command, and at last --help."""
        *own, help_option = super().get_params(ctx)
        return [*own, *_everywhere(), help_option]


class Group(TyperGroup):
    """Commands with -v and -q, whose help tells each of them in a whole sentence."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its own parameters, those of every command, and at last --help."""
        *own, help_option = super().get_params(ctx)
        return [*own, *_everywhere(), help_option]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Click does, but help that nobody has asked for is told as it is, on stderr."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            print(ctx.get_help(), file=sys.stderr)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names of commands and what they do; Click would cut that off after one line."""
        rows = [(name, _sentence(self.get_command(ctx, name))) for name in self.list_commands(ctx)]
        if not rows:
            return
        beside = max(len(word) for _, sentence in rows for word in sentence.split())
        with formatter.section("Commands"):
            if beside <= formatter.width - _NAMES - 4:
                formatter.write_dl(rows, col_max=_NAMES)
                return
            for name, sentence in rows:
                formatter.write_text(name)
                with formatter.indentation():
                    formatter.write_text(sentence)


def _sentence(command: Any) -> str:
    """The first paragraph of its help."""
    return " ".join((command.help or "").partition("\n\n")[0].split())
