"""Who imports whom: the table of the design, held against the code."""

import ast
from pathlib import Path

import pytest

ELSEWHERE = {
    "checkpoint/import_mdlm.py",
    "checkpoint/text_model.py",
    "data/batch.py",
    "diffusion/chunked_logits.py",
    "diffusion/masked/warm_start.py",
    "diffusion/masked/word_freq_released.py",
    "diffusion/options.py",
    "diffusion/score/transitions.py",
    "diffusion/text_process.py",
    "evaluation/likelihood_report.py",
    "models/factory.py",
    "models/time_conditioning.py",
    "training/arguments.py",
    "training/clock.py",
    "training/setup.py",
    "training/step.py",
    "utils/gathering.py",
    "utils/messages.py",
    "utils/network_config.py",
    "utils/workers.py",
}
"""Modules that are tested beside their neighbours."""
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
}
"""By folder, the folders it may import from. Scripts may import from all of them, and are imported by none."""
ROOM_OF = {"diffusion_word_freq": "diffusion"} | dict.fromkeys(SCRIPTS, "scripts") | {room: room for room in MAY_IMPORT}
FILES = sorted(file for room in MAY_IMPORT for file in (ROOT / room).rglob("*.py")) + sorted(ROOT.glob("*.py"))
EVERY_FILE = [*FILES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]


def name_of(file: Path) -> str:
    """The dotted name of a module."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(file) for file in FILES}


def imports_of(file: Path) -> set[str]:
    """Names of the modules of this project that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (deeper & MODULES) or {node.module}
    return names & MODULES


def circles(edges: dict[str, set[str]]) -> set[str]:
    """Nodes that can be reached from themselves."""

    def reached(start: str) -> set[str]:
        found, waiting = set(), [start]
        while waiting:
            for following in edges.get(waiting.pop(), set()) - found:
                found.add(following)
                waiting.append(following)
        return found

    return {node for node in edges if node in reached(node)}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_imports_only_what_the_table_allows(file: Path) -> None:
    room = ROOM_OF[name_of(file).split(".")[0]]
    allowed = set(MAY_IMPORT) if room == "scripts" else MAY_IMPORT[room] | {room}
    assert {ROOM_OF[name.split(".")[0]] for name in imports_of(file)} <= allowed


def test_the_rows_of_the_table_are_in_order() -> None:
    rooms = list(MAY_IMPORT)
    assert all(allowed <= set(rooms[: rooms.index(room)]) for room, allowed in MAY_IMPORT.items())


def test_there_is_no_circle_between_files() -> None:
    assert circles({name_of(file): imports_of(file) - {name_of(file)} for file in FILES}) == set()


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}


@pytest.mark.parametrize("file", EVERY_FILE, ids=name_of)
def test_files_stay_short_and_say_what_they_are(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) < 400
    assert ast.get_docstring(ast.parse(text))


def test_nothing_unpickles_and_no_path_of_a_machine_is_written_down() -> None:
    for file in FILES:
        text = file.read_text()
        assert not any(word in text for word in ("pickle.load", "allow_pickle=True", "cuda:0", "/home/"))
        reads = text.count("torch.load(")  # released MDLM checkpoints alone, and weights only
        assert reads == text.count("weights_only=True)") == (file.stem == "released_mdlm")


def test_every_module_has_its_tests() -> None:
    """tests/ mirrors the rooms: data/pairs.py is tested by tests/data/test_pairs.py."""
    tested = {str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob("test_*.py")}
    modules = [file.relative_to(ROOT) for file in FILES if file.name != "__init__.py"]
    lacking = {str(file) for file in modules if str(file.with_name(f"test_{file.name}")) not in tested}
    assert lacking <= ELSEWHERE
