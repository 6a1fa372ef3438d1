"""README.md of a checkpoint: how to load it, figures, settings and facts."""

import re
from dataclasses import asdict, dataclass

from checkpoint.model_parts import ModelParts
from utils.figures import number

HEADER = """---
library_name: transformers
pipeline_tag: fill-mask
{licence}tags: [diffusion, masked-diffusion, diffusionbert]
---
"""
EMPTY = "not stated"


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
    settings = "\n".join(f"| {name} | {value} |" for name, value in chosen.items())
    facts = "\n".join(f"| {name} | {value} |" for name, value in shown_facts(model.facts).items())
    title = publication.name.partition("/")[2] if publication else "A DiffusionBERT checkpoint"
    licence = f"license: {publication.licence}\n" if publication and publication.licence else ""
    return f"""{HEADER.format(licence=licence)}# {title}

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


def shown_facts(facts: dict) -> dict:
    """Return a checkpoint's facts, with the names of local folders instead of their paths."""
    return {name: without_folders(value) if isinstance(value, str) else value for name, value in facts.items()}


def without_folders(text: str) -> str:
    """Replace absolute paths in a text by their last part: nobody else has these folders."""
    return re.sub(r"(?<![\w:/.-])(?:/[^/\s;,]+)*/([^/\s;,]+)", r"\1", text)


def _use(model: ModelParts, name: str) -> str:
    """Return the commands that use the checkpoint."""
    script, data = ("predict_downstream_condition.py", " --data FILE") if model.pairs else ("predict.py", "")
    sample = f"python {script} --checkpoint {name}{data}"
    score = f"python compute_elbo.py --checkpoint {name} --data FILE"
    return f"Sample: `{sample}`. Score: `{score}`.\n{_network(model)}\n"


def _published(model: ModelParts, publication: Publication) -> str:
    """Return description, figures, data and licence."""
    facts, kind = model.facts, "pairs (seq2seq)" if model.pairs else "text"
    method = "sample" if not model.pairs else "generate"
    figures = [
        f"- {label}: {number(facts[key], 2)}"
        for key, label in (("bits_per_token", "bits per token"), ("ppl_word", "perplexity per word"))
        if isinstance(facts.get(key), float)
    ]
    conditions = f"{facts.get('num_sequences', '?')} validation sentences, {facts.get('num_steps', '?')} steps"
    figures = figures or ["- none recorded"]
    what = "upper bounds" if model.process.is_bound else "of the released arithmetic, which gives no bounds"
    return f"""
A masked diffusion language model of {kind}: process `{model.process_name}`, {type(model.denoiser.network).__name__},
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
    return f"The network alone opens with `transformers.AutoModelForMaskedLM.from_pretrained`{after}."
