"""Who imports whom: the table of the design, held against the code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {path.stem for path in ROOT.glob("*.py")} | {"models"}
SCRIPTS = {
    "main",
    "predict",
    "predict_downstream_condition",
    "compute_elbo",
    "compute_metric",
    "word_freq",
    "demo_corpus",
    "import_mdlm",
}
LIBRARY = {
    "config",
    "checkpoint",
    "dataloader",
    "batches",
    "bookkeeping",
    "counting",
    "distributed",
    "files",
    "parallel",
    "resuming",
    "shards",
    "splits",
    "streaming",
    "training_state",
    "vocabulary",
    "plain_text",
    "tokenizer_checks",
    "wordpieces",
    "corpus",
    "likelihood",
    "optim",
    "outcome",
    "output_folder",
    "pacing",
    "runtime",
    "tracking",
    "pretrained",
    "process",
    "hub",
    "pairs",
    "metrics",
    "metrics_of_models",
    "masked_prediction",
    "predictions",
    "protocols",
    "detokenizers",
    "semi_autoregressive",
    "judges",
    "infilling",
    "showing",
    "settings",
    "spindle_report",
    "figures",
    "words",
    "comparable",
}
PROCESSES = {
    "diffusion_word_freq",
    "diffusion_word_freq_released",
    "diffusion_mdlm",
    "diffusion_d3pm",
    "diffusion_sedd",
    "autoregressive",
    "diffusion_score",
}
MAY_IMPORT = {
    "process": set(),
    "draws": {"process"},
    "files": {"process"},
    "distributed": {"process"},
    "runtime": {"process"},
    "parallel": {"distributed"},
    "fitlog_record": {"files"},
    "outcome": {"figures", "fitlog_record"},
    "pacing": {"config", "optim"},
    "tracking": {"files", "fitlog_record"},
    "hub": set(),
    "sources": {"distributed", "files", "hub", "process"},
    "records": {"files", "process", "sources"},
    "parquets": {"files", "hub", "process", "records"},
    "cache": {"files"},
    "splits": {"corpus", "dataloader", "process"},
    "corpus": {"files", "hub", "parquets", "process", "records", "sources"},
    "pretrained": {"files", "plain_text", "process", "tokenizer_checks"},
    "vocabulary": {
        "cache",
        "corpus",
        "files",
        "hub",
        "plain_text",
        "pretrained",
        "process",
        "sentencepieces",
        "tokenizer_checks",
        "wordpieces",
    },
    "sentencepieces": {"files", "hub", "process", "tokenizer_checks"},
    "wordpieces": {"files", "process"},
    "plain_text": {"corpus", "process"},
    "tokenizer_checks": {"files", "plain_text", "process"},
    "detokenizers": set(),
    "figures": set(),
    "words": set(),
    "comparable": {"checkpoint", "dataloader", "figures", "protocols"},
    "semi_autoregressive": {"process"},
    "judges": {"checkpoint", "dataloader", "figures", "metrics_of_models", "process", "vocabulary"},
    "protocols": {"corpus", "dataloader", "detokenizers", "process", "splits", "vocabulary"},
    "dataloader": {"cache", "corpus", "detokenizers", "plain_text", "process", "vocabulary"},
    "batches": {"dataloader", "process"},
    "pairs": {"corpus", "dataloader", "files", "hub", "process", "splits", "vocabulary"},
    "shards": {"corpus", "files", "hub", "parquets", "process", "records", "sources"},
    "counting": {"cache", "corpus", "plain_text", "process", "runtime", "shards", "vocabulary"},
    "streaming": {
        "batches",
        "corpus",
        "counting",
        "dataloader",
        "distributed",
        "hub",
        "process",
        "runtime",
        "shards",
        "sources",
        "splits",
        "vocabulary",
    },
    "optim": {"process"},
    "infilling": {"process"},
    "showing": set(),
    "predictions": {"files", "process", "records"},
    "metrics": {"words"},
    "metrics_of_models": {"process", "hub", "pretrained", "tokenizer_checks"},
    "models": {"files", "process", "hub", "pretrained", "vocabulary"},
    "row_clocks": {"draws", "process"},
    "ancestral": {"draws", "process"},
    "decoding": {"ancestral", "draws"},
    "text_process": {"process"},
    "noise_schedules": set(),
    "masked_prediction": {"draws", "process"},
    "estimators": {"draws", "process", "masked_prediction"},
    "masked_process": {
        "draws",
        "process",
        "noise_schedules",
        "text_process",
        "row_clocks",
        "ancestral",
        "decoding",
        "estimators",
        "masked_prediction",
    },
    "diffusion_mdlm": {"draws", "process", "masked_process", "noise_schedules"},
    "diffusion_d3pm": {"draws", "process", "masked_process", "masked_prediction", "noise_schedules"},
    "diffusion_sedd": {"draws", "process", "masked_process", "masked_prediction", "noise_schedules"},
    "autoregressive": {"draws", "process", "text_process", "masked_prediction"},
    "noise_levels": set(),
    "score_samplers": set(),
    "score_bound": {"diffusion_score", "draws", "noise_levels", "process"},  # the types of the process, no more
    "score_sampling": {
        "diffusion_score",
        "draws",
        "masked_prediction",
        "noise_levels",
        "process",
        "score_bound",
        "score_samplers",
    },
    "diffusion_score": {
        "draws",
        "masked_prediction",
        "noise_levels",
        "process",
        "score_bound",
        "score_samplers",
        "score_sampling",
        "text_process",
    },
    "diffusion_word_freq": {"draws", "process", "masked_process", "masked_prediction"},
    "diffusion_word_freq_released": {"draws", "process", "diffusion_word_freq"},
    "checkpoint": {
        "vocabulary",
        "pairs",
        "parallel",
        "models",
        "pretrained",
        "process",
        "files",
        "text_process",
        "protocols",
        *PROCESSES,
    },
    "likelihood": {
        "batches",
        "checkpoint",
        "dataloader",
        "diffusion_word_freq",
        "distributed",
        "figures",
        "process",
        "words",
    },
    "training_state": {"distributed", "files", "optim", "parallel", "process"},
    "bookkeeping": {
        "batches",
        "checkpoint",
        "config",
        "dataloader",
        "distributed",
        "figures",
        "files",
        "fitlog_record",
        "likelihood",
        "optim",
        "outcome",
        "output_folder",
        "pacing",
        "parallel",
        "process",
        "runtime",
        "tracking",
        "training_state",
        "vocabulary",
    },
    "resuming": {"config", "distributed", "files", "output_folder", "process", "training_state"},
    "output_folder": {"config", "distributed", "files", "fitlog_record", "tracking", "training_state"},
    "config": {"process"},
    "settings": {"checkpoint", "config", "dataloader", "distributed", "models", "optim", "pairs", "protocols"},
    "spindle_report": {"dataloader", "diffusion_word_freq"},
    **dict.fromkeys(SCRIPTS, LIBRARY | {"models", "diffusion_word_freq"}),
}
FILES = sorted([*ROOT.glob("*.py"), *(ROOT / "models").glob("*.py")])
EVERY_FILE = sorted([*FILES, *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


def imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names & MODULES


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_module_imports_only_what_the_table_allows(file: Path) -> None:
    name = "models" if file.parent.name == "models" else file.stem
    assert imports_of(file) - {name} <= MAY_IMPORT[name]


@pytest.mark.parametrize("file", EVERY_FILE, ids=lambda f: str(f.relative_to(ROOT)))
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
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    elsewhere = {"__init__", "diffusion_word_freq_released", "import_mdlm"}
    expected = {file.stem for file in FILES} - elsewhere
    assert expected <= tested and "released_parity" in tested
