"""docs/python.md: its Python blocks run, and print texts."""

import re
from pathlib import Path

from tests.conftest import ROOT
from tests.test_docs import code_blocks


def test_the_blocks_of_the_page_run(trained: Path, trained_pairs: Path, capsys) -> None:
    folders = {"out/demo/checkpoint": trained, "out/condition_demo/checkpoint": trained_pairs}
    blocks = [block for kind, block in code_blocks((ROOT / "docs" / "python.md").read_text()) if kind == "python"]
    names: dict = {}
    for block in blocks:
        for known, folder in folders.items():
            block = block.replace(f'"{known}"', repr(str(folder)))
        assert "out/" not in block
        exec(compile(block, "docs/python.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert len(blocks) == 3 and len(lines) > 10 and all(lines)
    assert len([line for line in lines if re.fullmatch(r"[0-9.]+ nats, [0-9]+ words", line)]) == 2
    assert lines[-1].startswith("['")
