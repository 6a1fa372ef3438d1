"""Checkpoints: a model of text or pairs, its folder on disk, and its use from Python (`TextModel`)."""


def __getattr__(name: str) -> type:
    """Import `TextModel` where it is used: training needs neither its films nor its minimum Bayes risk."""
    if name == "TextModel":
        from checkpoint.text_model import TextModel

        return TextModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
