"""The site: nothing public is missing in its reference, every page is in it, and what its pages tell to type runs.

Without Sphinx, which .ci/run builds it with.
"""

import re
import shutil
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

import refloss
import refloss.testing
from docs._ext import docstrings, formulas, reference
from refloss.testing import strategies
from tests.pages import ROOT, blocks, run

FOUND = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = [page.relative_to(ROOT).as_posix() for page in FOUND]
# What is no code: what programs print, and what only Sphinx reads.
PRINTED = re.compile(r"|text|\{(?:toctree|include)\}.*")

# Pages that need a framework.
FRAMEWORKS = ("docs/how_to/judge_a_triton_kernel.md", "docs/pytest.md")

# Blocks that another test runs, by page and language.
ELSEWHERE = {
    **{
        (f"docs/{page}.md", "python"): "test_examples.py"
        for page in (
            *("contrastive", "distillation", "golden_format", "linear", "log_probs", "many_machines"),
            *("mixture_of_experts", "policies", "policy_presets", "preferences", "speech", "transducers", "tutorial"),
        )
    },
    ("docs/golden_format.md", "json"): "test_examples.py",
    ("docs/golden_format.md", "sh"): "test_read_in_order.py",
    **dict.fromkeys(product(("docs/metamorphic.md",), ("python", "sh")), "test_read_in_order.py"),
    ("docs/many_machines.md", "sh"): "test_scheduler.py, with a cluster of its own",
    ("docs/tolerances.md", "python"): "test_examples.py",
    ("docs/topk_distillation.md", "python"): "test_topk_distillation.py",
    ("docs/tutorial.md", "sh"): "test_examples.py does the same within the process",
    ("README.md", "sh"): "test_examples.py and .ci/run: they are installations and long programs",
    ("docs/speech_synthesis.md", "python"): "conformance/test_speech_synthesis.py: PyTorch",
    **dict.fromkeys(product(FRAMEWORKS, ("python", "sh")), "conformance/test_pages.py: PyTorch, JAX"),
}
# Blocks that nothing runs, and why.
NOT_RUN = {
    ("docs/cuda.md", "sh"): "installs a package for GPUs",
    ("docs/cuda.md", "python"): "arrays on a GPU, as tests/test_cuda.py has them",
    (
        "docs/golden_format.md",
        "rust",
    ): "needs crates; examples/rust/causal_lm.rs does the same without",
    ("docs/how_to/golden_files_in_other_languages.md", "swift"): "no compiler of Swift",
    ("docs/how_to/in_ci.md", "yaml"): "another system's",
    ("docs/outside_users.md", "sh"): "installs packages and runs whole suites",
    ("CONTRIBUTING.md", "sh"): "installs packages, builds wheels and runs all tests",
    ("CONTRIBUTING.md", "python"): "an excerpt of refloss/losses/mse.py",
}


def judged(inputs, parameters, cotangent):
    """A kernel that is right."""
    r = refloss.causal_lm(**inputs, **parameters, grad_output=cotangent)
    return r.loss.astype(np.float32), r.grads


def given():
    """What a page leaves to its reader: arrays, a kernel and its framework."""
    names = {}
    exec(next(block.text for block in blocks("README.md") if block.language == "python"), names)
    loss, grads = judged({"logits": names["logits"], "labels": names["labels"]}, {}, 2.0)
    mine = {"my_loss": loss, "my_gradient": grads["logits"], "my_function": judged}
    return names | {"jnp": SimpleNamespace(asarray=np.asarray), **mine}


CODE = {(page, block.language) for page in PAGES for block in blocks(page) if not PRINTED.fullmatch(block.language)}
HERE = sorted(CODE - ELSEWHERE.keys() - NOT_RUN.keys())


def test_every_public_name_has_an_entry():
    public = {f"refloss.{name}" for name in refloss.__all__}
    public |= {f"refloss.testing.{name}" for name in refloss.testing.__all__ if name != "strategies"}
    public |= {f"refloss.testing.strategies.{name}" for name in strategies.__all__}
    written = "\n".join(reference.files().values())
    found = re.findall(r"^\.\. (?:autofunction|autoclass|py:data):: (\S+)$", written, re.MULTILINE)
    assert len(found) == len(set(found))
    assert public <= set(found) == reference.public()


def test_every_entry_says_what_it_is():
    for name in reference.public():
        value = reference.located(name)
        assert value.__doc__ or isinstance(value, tuple), name


def test_every_command_is_in_the_reference():
    page = reference.files()["command_line.rst"]
    commands = ("compute", "golden write", "golden check", "golden add", "compare", "check", "warm", "list")
    assert all(f"Usage: refloss {command} " in page for command in commands)


def test_every_page_of_the_reference_is_in_a_list_of_pages():
    written = reference.files()
    listed = re.findall(r"^   (\w+)$", "\n".join(written.values()), re.MULTILINE)
    assert sorted(listed) == sorted({name.removesuffix(".rst") for name in written} - {"index"})


def test_every_page_is_in_the_site():
    lists = [block.text for block in blocks("docs/index.md") if block.language == "{toctree}"]
    listed = [line for text in lists for line in text.splitlines() if line and not line.startswith(":")]
    pages = {page.removeprefix("docs/").removesuffix(".md") for page in PAGES if page.startswith("docs/")}
    assert sorted(listed) == sorted(pages - {"index"} | {"api/index"})


def test_docstrings_keep_what_they_say():
    lines = ["Half of |x|, as refloss.mse.", "", "    y = x²", "", "Args:", "    a, b: two", "        lines.", ""]
    lines += ["Raises:", "    ValueError: x. TypeError: y."]
    assert docstrings.as_rst(lines, {"refloss.mse"}) == [
        *("Half of \\|x\\|, as :py:obj:`refloss.mse`.", "", ".. math::", "", f"   {formulas.as_tex(['y = x²'])}", ""),
        *(".. rubric:: Args", "", "``a``, ``b``", "    two lines.", ""),
        *(".. rubric:: Raises", "", "``ValueError``", "    x.", "", "``TypeError``", "    y.", ""),
    ]


@pytest.mark.parametrize(
    ("line", "tex"),
    [
        ("∂L/∂x_j = c·(Q·p_j − q_j)", r"\partial L/\partial x_{j} = c\cdot (Q\cdot p_{j} - q_{j})"),
        ("e^(−a_j)·a_j/S", r"e^{-a_{j}}\cdot a_{j}/S"),
        ("log Σ_e e^z_ie", r"\operatorname{log} \sum _{e} e^{z_{ie}}"),
        ("β(y_{u+1}) if full, else 0", r"\beta (y_{u+1})\ \text{if}\ \text{full},\ \text{else}\ 0"),
        ("lse − x, 1e-12", r"\mathrm{lse} - x, 10^{-12}"),
    ],
)
def test_a_formula_is_tex(line, tex):
    assert formulas.as_tex([line]) == rf"\begin{{array}}{{l}} \displaystyle {tex} \end{{array}}"


def test_equations_stand_below_each_other_and_tables_do_not():
    equations, table = formulas.as_tex(["a = b,    c = d"]), formulas.as_tex(["drop    a", "bucket  b"])
    assert equations.count(r"\\") == 1
    assert "&" not in equations
    assert table.count("&") == 2


def test_lists_of_blocks_are_fresh():
    assert ELSEWHERE.keys() | NOT_RUN.keys() <= CODE
    assert not ELSEWHERE.keys() & NOT_RUN.keys()


@pytest.mark.parametrize("page", sorted({page for page, _ in HERE}))
def test_what_a_page_tells_to_type_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page == "docs/how_to/golden_files_in_other_languages.md" and not (shutil.which("rustc") and shutil.which("c++")):
        pytest.skip("there is no compiler of Rust, or none of C++")
    run(page, {language for name, language in HERE if name == page}, given())
