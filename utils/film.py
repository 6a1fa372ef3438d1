"""Film of texts while they are denoised: the data, and one HTML page that plays it without any network."""

import json
from dataclasses import dataclass
from pathlib import Path
from string import Template

PAGE = Path(__file__).with_name("film.html")


@dataclass(frozen=True)
class Piece:
    """A token of the finished text."""

    text: str
    glued: bool
    """Whether no space separates it from the token before."""
    information: float
    """-log p(w) of the token in nats, p its frequency in the training text."""
    given: bool
    """Whether it was never masked."""


@dataclass(frozen=True)
class Change:
    """A token that a step of the sampler has changed."""

    position: int
    text: str | None
    """The new token; None: masked again."""
    probability: float | None
    """Probability of the token under the network at that moment; None: not known."""


@dataclass(frozen=True)
class FilmedText:
    """A text from its first frame, in which all but the given tokens are masked, to its last."""

    pieces: list[Piece]
    frames: list[list[Change]]
    """Changes of each step, in order."""

    def shown(self, frame: int) -> list[tuple[str | None, int, float | None]]:
        """Return each token after `frame` steps: text (None: masked), step of its last change, probability."""
        state = [(piece.text if piece.given else None, 0, None) for piece in self.pieces]
        for number, changes in enumerate(self.frames[:frame], 1):
            for change in changes:
                state[change.position] = (change.text, number, change.probability)
        return state


def page(texts: list[FilmedText], title: str) -> str:
    """Return the HTML page. Texts are data in it, never markup."""
    words: dict[str, int] = {}

    def numbered(text: str | None) -> int:
        return -1 if text is None else words.setdefault(text, len(words))

    def entry(change: Change) -> list:
        known = change.probability is not None
        return [change.position, numbered(change.text), round(change.probability, 3) if known else None]

    films = [
        {
            "pieces": [[each.text, each.glued, round(each.information, 2), each.given] for each in film.pieces],
            "frames": [[entry(change) for change in frame] for frame in film.frames],
        }
        for film in texts
    ]
    data = json.dumps({"texts": films, "words": list(words)}, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":  # a text cannot end the element that holds it
        data = data.replace(character, f"\\u{ord(character):04x}")
    escaped = title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Template(PAGE.read_text(encoding="utf-8")).substitute(title=escaped, data=data)
