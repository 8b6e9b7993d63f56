"""Functions that only compiled code calls: their intermediate code is kept, and no machine code is made of it.

Numba optimises each function by itself, together with all that it calls, and generates machine code for it, so that
Python may call it. A scalar five calls below a loop would go through LLVM six times, and only the last time counts: a
loop is optimised as a whole. So what is called from compiled code alone is only joined with what it calls.
"""

from __future__ import annotations

from typing import Any

import numba
from numba.core.compiler_machinery import register_pass

try:
    from numba import _dynfunc  # type: ignore[attr-defined]
    from numba.core.codegen import JITCodeLibrary
    from numba.core.compiler import CompilerBase, DefaultPassBuilder
    from numba.core.typed_passes import NativeLowering
except ImportError as error:
    raise ImportError(
        f"refloss compiles by classes that Numba 0.68 has and Numba {numba.__version__} lacks ({error}):"
        " install numba>=0.68,<0.69"
    ) from error


class _Intermediate(JITCodeLibrary):
    """The code of a function and of all that it calls, for others to be joined with."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    """Lower a function to intermediate code."""

    _name = "lowering_to_intermediate_code"

    def run_pass(self, state: Any) -> bool:
        state.library = _Intermediate(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        result = state["cr"]
        # What callers find it by; as of any function without a wrapper for Python, there is nothing behind it.
        name, module = result.fndesc.qualname, result.fndesc.lookup_module()
        entry = _dynfunc.make_function(module, name.split(".")[-1], name, 0, result.env, (state.library,))
        state.targetctx.insert_user_function(entry, result.fndesc, [state.library])
        state["cr"] = result._replace(cfunc=entry)
        return True


class Compiler(CompilerBase):
    """Numba's compiler, which stops at intermediate code."""

    def define_pipelines(self) -> list[Any]:
        """One way, without a fallback to Python's objects."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [(_Lowering if step is NativeLowering else step, words) for step, words in passes.passes]
        passes.finalize()
        return [passes]
