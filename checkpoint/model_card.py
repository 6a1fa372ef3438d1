"""README.md of a checkpoint: how to load it, figures, settings and facts."""

import re
from dataclasses import asdict, dataclass
from pathlib import PurePath

from checkpoint.model_parts import ModelParts
from utils.figures import number
from utils.files import label_of
from utils.hub import REPOSITORY

HEADER = """---
library_name: transformers
{licence}tags: [{tags}, diffusionbert]
---
"""
KINDS = {
    "ar": ("An autoregressive", "text-generation"),
    "score": ("A score-based diffusion", "diffusion"),
}
MASKED = ("A masked diffusion", "diffusion, masked-diffusion, fill-mask")
"""Kind of model and tags on the hub, by process; the others are masked."""
EMPTY = "not stated"
ORIGIN = re.compile(r"(\d+ of \d+ tensors from )(.*?)((?:; \d+ (?:of the head|tensors of the file) .*)?)")
"""Parts of `NetworkDenoiser.origin`: number of tensors, name or path, what is new or unused."""


@dataclass(frozen=True)
class Publication:
    """What the card of a published checkpoint says besides the checkpoint's own facts."""

    name: str
    """USER/NAME on the hub."""
    data: str = ""
    """Training text, in words."""
    licence: str = ""
    """Identifier of a licence, as the hub spells it: apache-2.0, mit, cc-by-4.0."""


def model_card(model: ModelParts, publication: Publication | None = None) -> str:
    """Return the card, Markdown with the header that the Hugging Face hub reads."""
    chosen = {**asdict(model.process.args), **asdict(model.pairs or model.text_format)}
    settings = "\n".join(f"| {name} | {in_cell(value)} |" for name, value in chosen.items())
    facts = "\n".join(f"| {name} | {in_cell(value)} |" for name, value in shown_facts(model.facts).items())
    title = publication.name.partition("/")[2] if publication else "A DiffusionBERT checkpoint"
    licence = f'license: "{publication.licence}"\n' if publication and publication.licence else ""
    return f"""{HEADER.format(licence=licence, tags=KINDS.get(model.process_name, MASKED)[1])}# {title}

{_use(model, publication.name if publication else "DIR")}
{_published(model, publication) if publication else ""}
| setting of the process | value |
|---|---|
{settings}
| time_conditioning | {model.denoiser.time_conditioning} |

| fact | value |
|---|---|
{facts}
"""


def in_cell(value: object) -> str:
    """Return a value as the text of a cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def shown_facts(facts: dict) -> dict:
    """Return a checkpoint's facts, with the names of local folders instead of their paths."""
    return {name: without_folders(value) if isinstance(value, str) else value for name, value in facts.items()}


def without_folders(origin: str) -> str:
    """Replace a path in the origin of a network's weights by its last part; a name of the hub stays.

    Older checkpoints have the path there, newer ones the folder's name alone.
    """
    found = ORIGIN.fullmatch(origin)
    if not found or REPOSITORY.fullmatch(found[2]):
        return origin
    return found[1] + label_of(PurePath(found[2].replace("\\", "/"))) + found[3]


def sample_command(model: ModelParts, name: str) -> str:
    """Return the command that samples from a checkpoint of this name."""
    script, data = ("predict_downstream_condition.py", " --data FILE") if model.pairs else ("predict.py", "")
    return f"python {script} --checkpoint {name}{data}"


def _use(model: ModelParts, name: str) -> str:
    """Return the commands that use the checkpoint."""
    sample = sample_command(model, name)
    score = f"python compute_elbo.py --checkpoint {name} --data FILE"
    return f"Sample: `{sample}`. Score: `{score}`.\n{_network(model)}\n"


def _published(model: ModelParts, publication: Publication) -> str:
    """Return description, figures, data and licence."""
    facts, of_what = model.facts, "pairs (seq2seq)" if model.pairs else "text"
    kind, network = KINDS.get(model.process_name, MASKED)[0], type(model.denoiser.network).__name__
    method = "sample" if not model.pairs else "generate"
    figures = [
        f"- {label}: {number(facts[key], 2)}"
        for key, label in (("bits_per_token", "bits per token"), ("ppl_word", "perplexity per word"))
        if isinstance(facts.get(key), float)
    ]
    conditions = f"{facts.get('num_sequences', '?')} validation sentences, {facts.get('num_steps', '?')} steps"
    figures = figures or ["- none recorded"]
    what = "upper bounds" if model.process.is_bound else "of the released arithmetic, which gives no bounds"
    what = "exact" if model.process_name == "ar" else what
    return f"""
{kind} language model of {of_what}: process `{model.process_name}`, network {network},
{model.tokenizer.vocab_size:,} tokens in the vocabulary, trained for {facts.get("step", "?")} steps. The repository
"DiffusionBERT, a re-implementation" loads it; from Python:

```python
from checkpoint import TextModel

TextModel.load("{publication.name}").{method}({'["a source"]' if model.pairs else "5"})
```

**Figures**, {what} ({conditions}):

{chr(10).join(figures)}

**Training text:** {publication.data or EMPTY}. **Licence:** {publication.licence or EMPTY}. The model repeats what its
training text says, errors and prejudices included.
"""


def _network(model: ModelParts) -> str:
    if model.adapter_base:
        name = model.adapter_base.name
        return f"The network is {name} with LoRA adapters: `peft.PeftModel.from_pretrained` opens the folder `adapter`."
    own = type(model.denoiser.network).__module__
    after = f" after `import {own}` of this project" if own.startswith("models.") else ""
    opener = "AutoModelForCausalLM" if model.causal else "AutoModelForMaskedLM"
    return f"The network alone opens with `transformers.{opener}.from_pretrained`{after}."
