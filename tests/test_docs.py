"""README.md and docs/: every command parses, every link and path resolves.

python -m tests.test_docs     # correct the line numbers of the README's table "Where is ..."
"""

import argparse
import ast
import contextlib
import functools
import importlib
import io
import itertools
import re
import shlex
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import training.config
from benchmarks import grammar
from modular_prompts.__main__ import COMMANDS
from tests.conftest import ROOT
from utils.command_line import parse

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
OTHERS = [ROOT / "SECURITY.md", ROOT / "benchmarks" / "README.md", *sorted(ROOT.glob("conditional_data/*/README.md"))]
ALL_PAGES = [README, *PAGES, *OTHERS]
EXTERNAL_PROGRAMS = {
    "source", "cat", "diff", "fitlog", "git", "hf", "pip", "pre-commit", "ruff", "ln", "mv", "tensorboard", "wandb",
}  # fmt: skip
"""Programs whose command lines are not parsed."""
WITHOUT_FLAGS = {f"benchmarks/{name}.py" for name in ("bleu", "memory", "table", "walk")}
MAIN, ELBO = ("main.py", "--train_data=text", "--output_dir=out"), ("compute_elbo.py", "--checkpoint=c", "--data=text")
RECIPES = {
    "run.sh": (MAIN, 2),
    "run_condition.sh": (MAIN, 2),
    "runs/equal_time.sh": (None, 4),
    "runs/family.sh": (None, 4),
    "runs/lm1b_mdlm.sh": (MAIN, 1),
    "runs/lm1b_small.sh": (MAIN, 3),
    "runs/paper_tables.sh": (None, 5),
    "runs/pretrained.sh": (None, 4),
    "runs/qqp.sh": (MAIN, 4),
    "runs/score.sh": ((*MAIN, "--process=score"), 0),
    "runs/slurm.sh": (MAIN, 0),
    "runs/text8.sh": (MAIN, 1),
    "runs/zero_shot.sh": (ELBO, 2),
}
"""By recipe: the script whose flags it takes, with the flags that it sets, and its number of positional arguments."""
OWN_FLAGS = {"runs/paper_tables.sh": ("--gpu",)}
"""Flags that are the recipe's own."""
NAMES = {
    "run.sh": {"demo", "lm1b"},
    "run_condition.sh": {"demo", "qqp", "Q-T", "wiki_alignment", "CC", "docstrings"},
    "runs/lm1b_mdlm.sh": {"mdlm", "d3pm", "sedd", "ar", "word_freq"},
}
"""First positional arguments that are names; any other is a path."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---- commands --------------------------------------------------------------------------------------------------------


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Return language and content of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)


def command_lines(text: str) -> Iterator[str]:
    """Yield lines of bash blocks, lines after a prompt in other blocks, and code spans that begin with a program."""
    for language, block in code_blocks(text):
        if language == "python":
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if language == "bash":
                yield line
            elif line.startswith("$ "):
                yield line[2:]
    yield from (span for span in spans(text) if re.match("(python|bash|torchrun|sbatch) ", span))


def commands(text: str) -> Iterator[list[str]]:
    """Yield every command as its shell words, variables replaced, without redirections."""
    variables: dict[str, str] = {}
    for line in command_lines(text):
        lexer = shlex.shlex(string.Template(line).safe_substitute(variables), posix=True, punctuation_chars="|&<>")
        lexer.whitespace_split = True
        for separator, part in itertools.groupby(lexer, lambda word: word in ("|", "||", "&&")):
            words = list(itertools.takewhile(lambda word: not re.match("[<>]", word), part))
            while words and re.match(r"\w+=", words[0]):
                name, _, value = words.pop(0).partition("=")
                variables[name] = value
            if words and not separator:
                yield words


class ParsedError(Exception):
    """Raised after a script has parsed its command line, to stop it there."""


def stop_after(parse):
    """Return a wrapper that calls `parse`, then raises ParsedError."""

    @functools.wraps(parse)
    def stopping(*args, **kwargs):
        parse(*args, **kwargs)
        raise ParsedError

    return stopping


def parse_as(script: str, arguments: list[str]) -> None:
    """Parse a command line by the script's own settings, without running the script.

    Raises:
        UserError, SystemExit: if the script would refuse it.
    """
    if script == "benchmarks/grammar.py":
        script, arguments = "main.py", [*MAIN[1:], *grammar.SETTINGS, *arguments[1:]]
    if script in WITHOUT_FLAGS:
        return None
    if script == "modular_prompts.py":
        return parse_prompts(*arguments)
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", [script, *arguments])
        owner = training.config if script == "main.py" else module
        if hasattr(owner, "parse"):
            patch.setattr(owner, "parse", stop_after(owner.parse))
        patch.setattr(argparse.ArgumentParser, "parse_args", stop_after(argparse.ArgumentParser.parse_args))
        try:
            module.main()
        except ParsedError:
            pass
        except SystemExit as end:
            assert end.code == 0 and "--help" in arguments, f"{script} {shlex.join(arguments)}: exit code {end.code}"


def parse_prompts(command: str = "--help", *arguments: str) -> None:
    """Parse a command line of `python -m modular_prompts`."""
    if command == "--help":
        return
    parse([*COMMANDS[command].kinds], command, argv=list(arguments))


def check_recipe(script: str, arguments: list[str]) -> None:
    """Check the arguments of a recipe: known names or paths, then flags of the script that it runs."""
    if script == "tests/run.sh" or "--help" in arguments:
        return
    target, most = RECIPES[script]
    arguments = [word for word in arguments if word not in OWN_FLAGS.get(script, ())]
    named = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    assert len(named) <= most, f"{script}: {named} are too many words"
    known = NAMES.get(script, set())
    if named and known and named[0] not in known:
        assert re.search(r"[./]|my_|^[A-Z_]+$", named[0]), f"{script}: {named[0]} is neither {known} nor a path"
    flags = arguments[len(named) :]
    assert target or not flags, f"{script} takes no flags: {flags}"
    if flags:
        process = [f"--process={named[0]}"] if script == "runs/lm1b_mdlm.sh" else []
        parse_as(target[0], [*target[1:], *process, *flags])


def check_command(command: list[str]) -> None:
    program, *arguments = command
    if program not in EXTERNAL_PROGRAMS:
        check_script(program, arguments)


def check_script(program: str, arguments: list[str]) -> None:
    if program in ("bash", "sbatch"):
        assert (ROOT / arguments[0]).is_file(), f"{arguments[0]}: no such script"
        check_recipe(arguments[0], arguments[1:])
        return
    if program == "torchrun":
        arguments = list(itertools.dropwhile(lambda word: not word.endswith(".py"), arguments))
    else:
        assert program == "python", f"{program}: unknown program"
    if arguments[0] == "-m":
        arguments = [arguments[1].replace(".", "/") + ".py", *arguments[2:]]
    if arguments[0] == "modular_prompts.py":
        parse_as(*arguments[:1], arguments[1:])
    elif arguments[0] != "pytest.py":
        assert (ROOT / arguments[0]).is_file(), f"{arguments[0]}: no such script"
        if not arguments[0].startswith("tests/"):
            parse_as(arguments[0], arguments[1:])


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_every_command_parses(page: Path) -> None:
    for command in commands(page.read_text()):
        check_command(command)


WRONG = """python main.py --train_data a.txt --output_dir b --no_such_flag 3
python main.py --train_data a.txt --output_dir b --process mdlm --spindle none
python main.py --train_data a.txt
python nothere.py
bash run.sh nothere
bash run.sh a.txt --no_such_flag 3
bash runs/nothere.sh
python benchmarks/faults.py --no_such_flag
python -m modular_prompts tune --no_such_flag
python -m modular_prompts nothere
rm -rf out"""


@pytest.mark.parametrize("line", WRONG.splitlines())
def test_a_wrong_command_fails_the_check(line: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises((AssertionError, ValueError, KeyError, SystemExit)):
        for command in commands(f"```bash\n{line}\n```\n"):
            check_command(command)


def test_recipe_names_occur_in_their_scripts_and_no_script_is_missing() -> None:
    for script, names in NAMES.items():
        text = (ROOT / script).read_text()
        assert all(re.search(rf"(?<![\w-]){name}(?![\w-])", text) for name in names)
    scripts = {name_of(path) for path in [*ROOT.glob("*.sh"), *ROOT.glob("runs/*.sh")]}
    assert set(RECIPES) == scripts - {"runs/setup.sh", "runs/recipe.sh", "runs/table.sh"}


EXTERNAL_FLAGS = {"--gpu", "--help", "--ip", "--logdir", "--max_restarts", "--nproc_per_node"}
"""Flags of recipes, of fitlog, of TensorBoard, of torchrun and of every script."""


@functools.cache
def sources() -> str:
    """Return the code that declares flags."""
    files = [*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]
    return "\n".join(file.read_text() for file in files)


FOLDERS = (
    "utils",
    "data",
    "models",
    "diffusion",
    "checkpoint",
    "evaluation",
    "training",
    "modular_prompts",
    "benchmarks",
)


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_every_flag_in_the_text_is_declared(page: Path) -> None:
    """Flags in code spans, which need not be whole commands: settings, aliases, or arguments of a benchmark."""
    text = page.read_text()
    for flag in {flag for span in spans(text) for flag in re.findall(r"(?<![\w-])--[a-z_0-9]+", span)}:
        declared = re.search(rf"^    {flag[2:]}: ", sources() + text, re.M) or f'"{flag}"' in sources()
        assert declared or flag in EXTERNAL_FLAGS, f"{page.name}: {flag} is no flag of any script"


# ---- links and paths -------------------------------------------------------------------------------------------------


def spans(text: str) -> list[str]:
    """Return the code spans outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(file: Path) -> set[str]:
    if file.suffix == ".md":
        return {slug(heading) for heading in re.findall(r"^#+ (.*)$", file.read_text(), re.M)}
    return {f"L{i + 1}" for i in range(len(file.read_text().splitlines()))}


def looks_like_a_path(span: str) -> bool:
    if not re.fullmatch(r"[\w./*-]+", span) or span.startswith(("out/", ".", "/", "-")):
        return False
    first, slash, _ = span.partition("/")
    return span.endswith((".py", ".sh", ".md", ".svg", ".toml", ".yaml")) or bool(slash and (ROOT / first).is_dir())


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_every_link_resolves(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{target}: no such file"
            assert not anchor or anchor in anchors(file), f"{target}: no such heading or line"


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_every_path_exists(page: Path) -> None:
    for span in filter(looks_like_a_path, spans(page.read_text())):
        matches = [*ROOT.glob(span), *page.parent.glob(span)]
        assert matches, f"`{span}`: no such file"


def test_paths_are_distinguished_from_other_code_spans() -> None:
    paths = ["models/bert.py", "run.sh", "docs/", "conditional_data/*/README.md", "tests/golden"]
    others = ["vocab.txt", "out/demo/checkpoint", "--flag", "a.b", "state/", "t/T", "python main.py", ".venv", "1/t"]
    assert all(map(looks_like_a_path, paths)) and not any(map(looks_like_a_path, others))


# ---- the README ------------------------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 220 and len(README.read_bytes()) <= 14_000


def test_the_tree_names_every_script_and_folder() -> None:
    tree = next(block for _, block in code_blocks(README.read_text()) if block.startswith("main.py"))
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.strip()}
    assert all((ROOT / name).exists() for name in named)
    scripts = {path.name for path in ROOT.glob("*.py")}
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert scripts | folders | {"conditional_data", "runs", "benchmarks", "docs"} <= named


WHERE = re.compile(r"\| `([\w.]+)` \| \[([\w/.]+):(\d+)\]\(\2#L(\d+)\) \|")


def assigned(statement: ast.stmt) -> str:
    """Return the name to which a statement assigns; "" if it is another statement."""
    target = getattr(statement, "target", None) or getattr(statement, "targets", [None])[0]
    return getattr(target, "id", "")


def line_of(file: str, symbol: str) -> int:
    """Return the line on which a class, function, method or constant of a file is defined; 0 if none is."""
    body = ast.parse((ROOT / file).read_text()).body
    node = None
    for name in symbol.split("."):
        node = next((found for found in body if name in (getattr(found, "name", None), assigned(found))), None)
        if node is None:
            return 0
        body = getattr(node, "body", [])
    return node.lineno


def test_the_where_is_table_gives_the_lines_of_its_symbols() -> None:
    rows = WHERE.findall(README.read_text())
    assert len(rows) >= 10
    for symbol, file, line, anchor in rows:
        actual = line_of(file, symbol)
        assert actual, f"{file} has no {symbol}"
        assert int(line) == int(anchor) == actual, f"{symbol} is {file}:{actual}; python -m tests.test_docs corrects it"


def correct_lines() -> None:
    """Correct the line numbers of the README's table."""

    def corrected(row: re.Match) -> str:
        line = line_of(row[2], row[1])
        return f"| `{row[1]}` | [{row[2]}:{line}]({row[2]}#L{line}) |"

    README.write_text(WHERE.sub(corrected, README.read_text()))


# ---- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_is_short_and_begins_with_a_title_and_a_code_block(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert len(lines) <= 300 and lines[0].startswith("# ")
    assert any(line.startswith("```") for line in lines[:20])


def test_the_readme_lists_every_page() -> None:
    text = README.read_text()
    assert all(f"](docs/{page.name})" in text for page in PAGES)


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_no_table_follows_a_heading_directly(page: Path) -> None:
    for before, first in re.findall(r"^(.*)\n\n(\|.*)$", page.read_text(), re.M):
        assert not before.startswith("#"), f"{before}: no sentence before the table {first}"


if __name__ == "__main__":
    correct_lines()


def test_the_torch_that_is_installed_by_hand_is_the_pinned_one() -> None:
    (pinned,) = re.findall(r"^torch==\S+", (ROOT / "requirements.txt").read_text(), re.M)
    assert re.findall(r"torch==\S+", (ROOT / "docs" / "training.md").read_text()) == [pinned]
