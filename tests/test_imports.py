"""Structure of the code: allowed imports, a test file for every module, short files and functions."""

import ast
import statistics
from pathlib import Path

import pytest

ELSEWHERE = {
    "models/denoiser.py": "the abstract base of BertDenoiser, DitDenoiser and ScoreDenoiser, which have files",
}
"""Modules without a test file of their own, and why."""
LONG: dict[str, str] = {}
"""Functions of more than 60 lines, "data/pairs.py:name", and why: only parsers and tables may be."""
ROOT = Path(__file__).parent.parent
SCRIPTS = ("main", "predict", "predict_downstream_condition", "compute_elbo", "compute_metric", "word_freq")
MAY_IMPORT = {
    "utils": set(),
    "data": {"utils"},
    "models": {"utils", "data"},
    "diffusion": {"utils", "data"},
    "checkpoint": {"utils", "data", "models", "diffusion"},
    "evaluation": {"utils", "data", "models", "diffusion", "checkpoint"},
    "training": {"utils", "data", "models", "diffusion", "checkpoint", "evaluation"},
    "modular_prompts": {"utils", "data", "models", "diffusion", "checkpoint", "evaluation", "training"},
}
"""By folder, the folders it may import from. Scripts may import from all of them; no module imports a script."""
FOLDER_OF = (
    {"diffusion_word_freq": "diffusion"} | dict.fromkeys(SCRIPTS, "scripts") | {name: name for name in MAY_IMPORT}
)
FILES = sorted(file for folder in MAY_IMPORT for file in (ROOT / folder).rglob("*.py")) + sorted(ROOT.glob("*.py"))
EVERY_FILE = [*FILES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]


def name_of(file: Path) -> str:
    """Return the dotted name of a module."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(file) for file in FILES}


def imports_of(file: Path) -> set[str]:
    """Return the names of this project's modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (submodules & MODULES) or {node.module}
    return names & MODULES


def cycles(edges: dict[str, set[str]]) -> set[str]:
    """Return the nodes that can be reached from themselves."""

    def reached(start: str) -> set[str]:
        reachable, pending = set(), [start]
        while pending:
            for following in edges.get(pending.pop(), set()) - reachable:
                reachable.add(following)
                pending.append(following)
        return reachable

    return {node for node in edges if node in reached(node)}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_imports_only_what_the_table_allows(file: Path) -> None:
    folder = FOLDER_OF[name_of(file).split(".")[0]]
    allowed = set(MAY_IMPORT) if folder == "scripts" else MAY_IMPORT[folder] | {folder}
    assert {FOLDER_OF[name.split(".")[0]] for name in imports_of(file)} <= allowed


def test_each_row_of_the_table_allows_earlier_rows_only() -> None:
    folders = list(MAY_IMPORT)
    assert all(allowed <= set(folders[: folders.index(folder)]) for folder, allowed in MAY_IMPORT.items())


def test_imports_have_no_cycle() -> None:
    assert cycles({name_of(file): imports_of(file) - {name_of(file)} for file in FILES}) == set()


def test_cycles_are_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}


@pytest.mark.parametrize("file", EVERY_FILE, ids=name_of)
def test_files_are_short_and_begin_with_a_docstring(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) < 400
    assert ast.get_docstring(ast.parse(text))


def test_no_file_unpickles_or_names_a_path_or_gpu_of_a_machine() -> None:
    for file in FILES:
        text = file.read_text()
        assert not any(word in text for word in ("pickle.load", "allow_pickle=True", "cuda:0", "/home/"))
        reads = text.count("torch.load(")  # only released MDLM checkpoints, with weights_only
        assert reads == text.count("weights_only=True)") == (file.stem == "released_mdlm")


def test_every_module_has_a_test_file() -> None:
    """tests/ mirrors the folders: data/pairs.py is tested by tests/data/test_pairs.py."""
    tested = {str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob("test_*.py")}
    modules = [file.relative_to(ROOT) for file in FILES if file.name != "__init__.py"]
    untested = {str(file) for file in modules if str(file.with_name(f"test_{file.name}")) not in tested}
    assert untested == set(ELSEWHERE)


def functions_of(file: Path) -> dict[str, int]:
    """Return the lines of every function, nested ones too, from `def` to its end, without decorators and docstring."""
    functions = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            functions[f"{file.relative_to(ROOT)}:{node.name}, line {node.lineno}"] = lines
    return functions


def test_functions_are_short() -> None:
    """The median is at most 8 lines, the 90th percentile at most 22, the maximum at most 60, in production code."""
    lines = {name: count for file in FILES for name, count in functions_of(file).items()}
    worst = sorted(lines.items(), key=lambda entry: -entry[1])
    assert len(lines) > 1000
    assert statistics.median(lines.values()) <= 8, worst[: len(worst) // 2]
    assert statistics.quantiles(lines.values(), n=10)[-1] <= 22, worst[: len(worst) // 10]
    assert {name.partition(",")[0] for name, count in worst if count > 60} == set(LONG)


def test_the_lines_of_a_function_exclude_its_docstring(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tests.test_imports.ROOT", tmp_path)
    (tmp_path / "a.py").write_text('@x\ndef f(\n    a,\n):\n    """One.\n\n    Two.\n    """\n\n    return a\n')
    assert functions_of(tmp_path / "a.py") == {"a.py:f, line 2": 5}
