"""refloss warm, and what refloss --version --verbose says: which compiled kernels there are."""

from __future__ import annotations

import json

from refloss import ahead, levels
from refloss.commands import telling
from refloss.commands.progress import progress
from refloss.messages import printable

_IDENTITIES = f"*/{levels.IDENTITY_FILE}"


def warm() -> None:
    """Compile what is missing of all kernels for this very processor, on all cores."""
    with progress("cases") as report:
        count = ahead.compile_kernels(report=report)
    telling.say(printable(f"{count or 'no'} kernels compiled, the others were there; yours are in {_own_folder()}"))


def kernels_in_words() -> list[str]:
    """Which kernels came with the package, which of them this processor loads or why none, and where the user's are."""
    from numba.core.registry import cpu_target

    own = cpu_target.target_context.codegen().magic_tuple()
    shipped = {path.parent.name: json.loads(path.read_text()) for path in sorted(levels.SHIPPED.glob(_IDENTITIES))}
    fitting = {name: target for name, target in levels.targets(own).items() if name in shipped}
    faults = {name: _fault(shipped[name], target) for name, target in fitting.items()}
    loaded = next((name for name, fault in faults.items() if not fault), "")
    lines = [f"compiled kernels that came with it: {', '.join(shipped) or 'none'}"]
    if shipped:
        why = "; ".join(filter(None, faults.values())) or "it lacks what each of these levels needs"
        lines.append(f"loaded on this processor, {own[1]}: {loaded or f'none, {why}'}")
    if not loaded:
        lines.append("kernels are compiled when they are first called, or all of them by refloss warm")
    return [printable(line) for line in (*lines, f"kernels compiled here are kept in {_own_folder()}")]


def _fault(of_kernels: dict[str, str], target: levels.Target) -> str:
    """What kernels are for, where this process is something else."""
    from refloss import disk_cache

    others = [name for name, value in disk_cache.identity(target).items() if of_kernels.get(name) != value]
    return f"they are for {others[0]} {of_kernels.get(others[0])}" if others else ""


def _own_folder() -> str:
    from refloss import disk_cache

    folder = disk_cache.own_folder()
    if folder is None:
        return "no folder: none can be written to"
    beside = folder.name == "__pycache__"
    return f"{folder}, and such folders below {folder.parent}" if beside else str(folder.parent)
