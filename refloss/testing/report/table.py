"""A judgement on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from refloss.messages import printable
from refloss.testing.report.wording import NOT_ANSWERED, diagnoses, failures, fault, hardest, likely, short, summary

if TYPE_CHECKING:
    from rich.console import Console

    from refloss.testing.verdict import CaseVerdict, Judgement

_WIDEST = 140  # a line that is longer is hard to follow
_INDENT = 2
_NUMBERS = ("ulp", "error\n÷ bound")


def show(judgement: Judgement, console: Console) -> None:
    """What is wrong by function, a line for each case that passes, all about the others, how many there are of each."""
    passing = [case for case in judgement.judged if case.passed]
    failing = [case for case in judgement.judged if not case.passed]
    if diagnoses(judgement):
        console.print(Text("What is wrong", "bold"), Padding(_diagnoses(judgement), (0, 0, 1, _INDENT)), sep="\n")
    if passing:
        console.print(_passing(passing))
    if failing:
        names = [len(printable(tensor.name)) for case in failing for tensor in case.tensors]
        for i, case in enumerate(failing):
            console.print()
            _show_failing(case, console, max([len("tensor"), *names]), heading=i == 0)
    style = "bold red" if failing else "bold green" if passing else "bold yellow"
    if judgement.judged:
        console.print()
    if len(judgement.judged) < len(judgement.cases):
        console.print(Text(NOT_ANSWERED, "dim"))
    console.print(Text(summary(judgement), style))


def _diagnoses(judgement: Judgement) -> Table:
    """A line for every mistake of a function: how many of its failing cases it explains."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold", ratio=1)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold", ratio=3)
    for each in judgement.diagnoses:
        mistake = (
            Text(printable(each.mistake), "bold yellow") if each.mistake else Text("no usual mistake explains them")
        )
        if each.detail:
            mistake.append(f"\n{printable(each.detail)}", "not bold dim")
        table.add_row(Text(printable(each.function)), f"{len(each.cases)} of {each.failing}", mistake)
    return table


def _passing(cases: list[CaseVerdict]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("case", overflow="fold")
    table.add_column("hardest tensor", overflow="fold")
    for number in _NUMBERS:
        table.add_column(number, justify="right", no_wrap=True)
    for case in cases:
        tensor = hardest(case)
        numbers = ("", "", "") if tensor is None else (printable(tensor.name), short(tensor.ulp), short(tensor.ratio))
        table.add_row(Text("pass", "green"), *map(Text, (printable(case.id), *numbers)))
    return table


def _show_failing(case: CaseVerdict, console: Console, name_width: int, *, heading: bool) -> None:
    console.print(Text.assemble(("FAIL", "bold white on red"), " ", (printable(case.id), "bold")))
    if not case.tensors:
        console.print(Padding(Text("\n".join(failures(case))), (0, 0, 0, _INDENT)))
        return
    width = min(console.width, _WIDEST) - _INDENT
    table = Table(box=None, pad_edge=False, width=width, header_style="dim", show_header=heading)
    table.add_column("tensor", width=min(name_width, width // 4), overflow="fold")
    table.add_column("what is wrong, and where most", ratio=1, overflow="fold")
    for number in _NUMBERS:
        table.add_column(number, justify="right", width=7, no_wrap=True)
    for tensor in case.tensors:
        wrong = tensor.passed is False
        cell = Text(fault(tensor), "red") if wrong else Text("passes" if tensor.passed else fault(tensor))
        if likely(tensor):
            cell.append(f"\n{likely(tensor)}", "bold yellow")
        numbers = (short(tensor.ulp), short(tensor.ratio))
        table.add_row(Text(printable(tensor.name)), cell, *map(Text, numbers), style="" if wrong else "dim")
    console.print(Padding(table, (0, 0, 0, _INDENT)))
