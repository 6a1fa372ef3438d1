"""The Hugging Face hub behind a bad line: its libraries kept quiet, its silence noticed once."""

import functools
import os
import sys

import huggingface_hub
import transformers
from huggingface_hub import constants

PATIENCE = 10  # seconds for the hub's first answer


def quiet_libraries() -> None:
    """Warnings and progress bars of the libraries off: what goes wrong reaches the user as one line of ours."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()


@functools.cache
def look_for_hub() -> str:
    """Asks the hub for a sign of life before the first use of it, and says why there is none, or "".

    Without an answer, only the hub's cache on this machine is read from then on, as with HF_HUB_OFFLINE=1: the
    libraries would try each name of each file six times, half a minute every time.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        return ""
    except Exception as error:  # any failure to connect, of whichever HTTP library this is
        silence = f"{constants.ENDPOINT} does not answer: {first_line(error)}"
    os.environ["HF_HUB_OFFLINE"] = "1"  # for libraries that are not imported yet
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return silence


def first_line(error: Exception) -> str:
    """What an error says, without the essay that follows; a line that ends in a colon takes the next one with it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")])


def why_not_given(error: Exception) -> str:
    """Why a name could not be had: the hub is silent and the cache lacks it, or what the hub said."""
    silence = look_for_hub()
    return f"{silence}; not in the cache here either" if silence else first_line(error)
