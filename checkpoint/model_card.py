"""README.md of a checkpoint: commands, settings and facts."""

from dataclasses import asdict

from checkpoint.model_parts import ModelParts


def model_card(model: ModelParts) -> str:
    """Return the card, Markdown with the header that the Hugging Face hub reads."""
    chosen = {**asdict(model.process.args), **asdict(model.pairs or model.text_format)}
    settings = "\n".join(f"| {name} | {value} |" for name, value in chosen.items())
    script, data = ("predict_downstream_condition.py", " --data FILE") if model.pairs else ("predict.py", "")
    facts = "\n".join(f"| {name} | {value} |" for name, value in model.facts.items())
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [diffusion, masked-diffusion, diffusionbert]
---
# A DiffusionBERT checkpoint

Sample: `python {script} --checkpoint DIR{data}`. Score: `python compute_elbo.py --checkpoint DIR --data FILE`.
{_network(model)}

| setting of the process | value |
|---|---|
{settings}
| time_conditioning | {model.denoiser.time_conditioning} |

| fact | value |
|---|---|
{facts}
"""


def _network(model: ModelParts) -> str:
    if model.adapter_base:
        name = model.adapter_base.name
        return f"The network is {name} with LoRA adapters: `peft.PeftModel.from_pretrained` opens the folder `adapter`."
    own = type(model.denoiser.network).__module__
    after = f" after `import {own}` of this project" if own.startswith("models.") else ""
    return f"The network alone opens with `transformers.AutoModelForMaskedLM.from_pretrained`{after}."
