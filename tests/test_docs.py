"""README.md and docs/: every command parses, every link and path leads somewhere, the worked example runs.

python -m tests.test_docs     # set the line numbers of the README's table "Where is ..." right
"""

import argparse
import ast
import contextlib
import functools
import importlib
import io
import itertools
import math
import re
import shlex
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import training.config
from benchmarks import grammar
from diffusion.process import Vocabulary
from tests.conftest import ROOT, TableDenoiser, all_sentences, text_batch
from tests.toy_family import limit_bound
from tests.toy_process import COUNTS, MASK, TOKENS

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
MORE = [ROOT / "SECURITY.md", ROOT / "benchmarks" / "README.md", *sorted(ROOT.glob("conditional_data/*/README.md"))]
ALL = [README, *PAGES, *MORE]
PROGRAMS = {"source", "diff", "fitlog", "git", "pip", "pre-commit", "ruff", "ln", "mv"}
"""Programs of others, whose command lines are not parsed."""
WITHOUT_FLAGS = {f"benchmarks/{name}.py" for name in ("bleu", "memory", "table", "walk")}
MAIN, ELBO = ("main.py", "--train_data=text", "--output_dir=out"), ("compute_elbo.py", "--checkpoint=c", "--data=text")
RECIPES = {
    "run.sh": (MAIN, 1),
    "run_condition.sh": (MAIN, 1),
    "runs/equal_time.sh": (None, 4),
    "runs/family.sh": (None, 4),
    "runs/lm1b_mdlm.sh": (MAIN, 1),
    "runs/lm1b_small.sh": (MAIN, 3),
    "runs/qqp.sh": (MAIN, 4),
    "runs/score.sh": ((*MAIN, "--process=score"), 0),
    "runs/slurm.sh": (MAIN, 0),
    "runs/text8.sh": (MAIN, 1),
    "runs/zero_shot.sh": (ELBO, 2),
}
"""Script whose flags a recipe takes, with those that the recipe sets itself, and number of words before the flags."""
NAMES = {
    "run.sh": {"demo", "lm1b"},
    "run_condition.sh": {"demo", "qqp", "Q-T", "wiki_alignment", "CC", "docstrings"},
    "runs/lm1b_mdlm.sh": {"mdlm", "d3pm", "sedd", "ar", "word_freq"},
}
"""First words with a meaning; any other is a path."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---- commands --------------------------------------------------------------------------------------------------------


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)


def command_lines(text: str) -> Iterator[str]:
    """Lines of bash blocks, lines after a prompt in other blocks, and code spans that begin with a program's name."""
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
    """Every command as its words, variables replaced, without what is redirected."""
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
    """Raised where a script has parsed its command line, so that it does nothing more."""


def stop_after(parse):
    """Return `parse`, ending in ParsedError."""

    @functools.wraps(parse)
    def stopped(*args, **kwargs):
        parse(*args, **kwargs)
        raise ParsedError

    return stopped


def parse_as(script: str, words: list[str]) -> None:
    """Parse a command line by the script's own settings, without running the script.

    Raises:
        UserError, SystemExit: if the script would refuse it.
    """
    if script == "benchmarks/grammar.py":
        script, words = "main.py", [*MAIN[1:], *grammar.SETTINGS, *words[1:]]
    if script in WITHOUT_FLAGS:
        return
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", [script, *words])
        owner = training.config if script == "main.py" else module
        if hasattr(owner, "parse"):
            patch.setattr(owner, "parse", stop_after(owner.parse))
        patch.setattr(argparse.ArgumentParser, "parse_args", stop_after(argparse.ArgumentParser.parse_args))
        try:
            module.main()
        except ParsedError:
            pass
        except SystemExit as end:
            assert end.code == 0 and "--help" in words, f"{script} {shlex.join(words)}: exit code {end.code}"


def check_recipe(script: str, words: list[str]) -> None:
    """Check the words of a recipe: known names or paths, then flags of the script that it runs."""
    if script == "tests/run.sh" or "--help" in words:
        return
    taker, most = RECIPES[script]
    named = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    assert len(named) <= most, f"{script}: {named} are too many words"
    known = NAMES.get(script, set())
    if named and known and named[0] not in known:
        assert re.search(r"[./]|my_|^[A-Z_]+$", named[0]), f"{script}: {named[0]} is neither {known} nor a path"
    flags = words[len(named) :]
    assert taker or not flags, f"{script} takes no flags: {flags}"
    if flags:
        process = [f"--process={named[0]}"] if script == "runs/lm1b_mdlm.sh" else []
        parse_as(taker[0], [*taker[1:], *process, *flags])


def check_command(words: list[str]) -> None:
    program, *rest = words
    if program not in PROGRAMS:
        check_script(program, rest)


def check_script(program: str, rest: list[str]) -> None:
    if program in ("bash", "sbatch"):
        assert (ROOT / rest[0]).is_file(), f"{rest[0]}: no such script"
        check_recipe(rest[0], rest[1:])
        return
    if program == "torchrun":
        rest = list(itertools.dropwhile(lambda word: not word.endswith(".py"), rest))
    else:
        assert program == "python", f"{program}: unknown program"
    if rest[0] == "-m":
        rest = [rest[1].replace(".", "/") + ".py", *rest[2:]]
    if rest[0] != "pytest.py":
        assert (ROOT / rest[0]).is_file(), f"{rest[0]}: no such script"
        if not rest[0].startswith("tests/"):
            parse_as(rest[0], rest[1:])


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_command_parses(page: Path) -> None:
    for words in commands(page.read_text()):
        check_command(words)


WRONG = """python main.py --train_data a.txt --output_dir b --no_such_flag 3
python main.py --train_data a.txt --output_dir b --process mdlm --spindle none
python main.py --train_data a.txt
python nothere.py
bash run.sh nothere
bash run.sh a.txt --no_such_flag 3
bash runs/nothere.sh
python benchmarks/faults.py --no_such_flag
rm -rf out"""


@pytest.mark.parametrize("line", WRONG.splitlines())
def test_a_wrong_command_is_found(line: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises((AssertionError, ValueError, SystemExit)):
        for words in commands(f"```bash\n{line}\n```\n"):
            check_command(words)


def test_the_names_of_recipes_stand_in_their_scripts() -> None:
    for script, names in NAMES.items():
        text = (ROOT / script).read_text()
        assert all(re.search(rf"(?<![\w-]){name}(?![\w-])", text) for name in names)
    scripts = {name_of(path) for path in [*ROOT.glob("*.sh"), *ROOT.glob("runs/*.sh")]}
    assert set(RECIPES) == scripts - {"runs/setup.sh", "runs/recipe.sh", "runs/table.sh"}


OF_OTHERS = {"--help", "--ip", "--max_restarts", "--nproc_per_node"}
"""Flags of fitlog, torchrun and of every script."""


@functools.cache
def sources() -> str:
    """All code that declares flags."""
    files = [*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]
    return "\n".join(file.read_text() for file in files)


FOLDERS = ("utils", "data", "models", "diffusion", "checkpoint", "evaluation", "training", "benchmarks")


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_flag_in_the_text_is_declared(page: Path) -> None:
    """Flags outside of whole commands: each is a field of some settings, an alias, or an argument of a benchmark."""
    text = page.read_text()
    for flag in {flag for span in spans(text) for flag in re.findall(r"(?<![\w-])--[a-z_0-9]+", span)}:
        declared = re.search(rf"^    {flag[2:]}: ", sources() + text, re.M) or f'"{flag}"' in sources()
        assert declared or flag in OF_OTHERS, f"{page.name}: {flag} is no flag of any script"


# ---- links and paths -------------------------------------------------------------------------------------------------


def spans(text: str) -> list[str]:
    """Code spans outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
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


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{target}: no such file"
            assert not anchor or anchor in anchors(file), f"{target}: no such heading or line"


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_path_exists(page: Path) -> None:
    for span in filter(looks_like_a_path, spans(page.read_text())):
        found = [*ROOT.glob(span), *page.parent.glob(span)]
        assert found, f"`{span}`: no such file"


def test_what_looks_like_a_path() -> None:
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


def test_where_is_points_at_its_symbols() -> None:
    rows = WHERE.findall(README.read_text())
    assert len(rows) >= 10
    for symbol, file, line, anchor in rows:
        right = line_of(file, symbol)
        assert right, f"{file} has no {symbol}"
        assert int(line) == int(anchor) == right, f"{symbol} is {file}:{right}; python -m tests.test_docs corrects it"


def correct_lines() -> None:
    """Write the right line numbers into the README's table."""

    def corrected(row: re.Match) -> str:
        line = line_of(row[2], row[1])
        return f"| `{row[1]}` | [{row[2]}:{line}]({row[2]}#L{line}) |"

    README.write_text(WHERE.sub(corrected, README.read_text()))


# ---- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_is_short_and_begins_with_its_purpose_and_a_command(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert len(lines) <= 300 and lines[0].startswith("# ")
    assert any(line.startswith("```") for line in lines[:20])


def test_the_readme_lists_every_page() -> None:
    text = README.read_text()
    assert all(f"](docs/{page.name})" in text for page in PAGES)


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_a_sentence_stands_before_each_table(page: Path) -> None:
    for before, first in re.findall(r"^(.*)\n\n(\|.*)$", page.read_text(), re.M):
        assert not before.startswith("#"), f"{before}: no sentence before the table {first}"


# ---- the worked example of docs/extending.md -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example() -> dict:
    """The namespace that the page's Python block leaves."""
    (block,) = (block for kind, block in code_blocks((ROOT / "docs" / "extending.md").read_text()) if kind == "python")
    names: dict = {"__name__": "example"}
    exec(compile(block, "docs/extending.md", "exec"), names)
    return names


def make_example(example: dict, power: float):
    return example["PolynomialDiffusion"](example["PolynomialArgs"](power=power), Vocabulary(len(COUNTS), MASK))


@pytest.mark.parametrize("power", [1.0, 2.5])
def test_the_posterior_of_the_example_composes(example: dict, power: float) -> None:
    """Staying masked from t to r is staying masked from t to s and from s to r."""
    process, x0 = make_example(example, power), torch.tensor([[0, 2, 4]])
    r, s, t = (torch.tensor([time], dtype=torch.float64) for time in (0.2, 0.5, 0.9))
    stay = [1 - process.posterior(x0, *pair, torch.ones_like(x0).bool()) for pair in ((r, t), (r, s), (s, t))]
    torch.testing.assert_close(stay[0], stay[1] * stay[2])
    alpha_bar = process.alpha_bar(t, x0, torch.ones_like(x0).bool())
    torch.testing.assert_close(alpha_bar, torch.full_like(alpha_bar, 1 - 0.9**power))


def test_the_bound_of_the_example_sums_to_at_most_one(example: dict) -> None:
    process, denoiser = make_example(example, 2.5), TableDenoiser(len(COUNTS))
    bounds = [limit_bound(process, denoiser, x0) for x0 in all_sentences(TOKENS, 2)]
    assert 0.5 < sum(math.exp(-bound) for bound in bounds) <= 1


def test_the_loss_of_the_example_estimates_its_bound(example: dict) -> None:
    process, denoiser, x0 = make_example(example, 2.5), TableDenoiser(len(COUNTS)), torch.tensor([0, 2, 4])
    batch = text_batch(x0.expand(20_000, 3))
    loss = process.loss(denoiser, batch, generator=torch.Generator().manual_seed(0))
    assert loss.total.item() / 20_000 == pytest.approx(limit_bound(process, denoiser, x0), rel=0.02)
    assert loss.num_tokens == 60_000 and loss.terms["cross_entropy"] > 0


if __name__ == "__main__":
    correct_lines()
