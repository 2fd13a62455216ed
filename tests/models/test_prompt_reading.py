"""The parts of a prompt among token states, by encoders written for it."""

from __future__ import annotations

import pytest
import torch

from analogy.core.words import places
from analogy.models.reading import Given, PromptReader, given_to
from analogy.steering.conditioning import Conditioning, Reading

HEAD, TAIL, PAD = "<u>\n", "</u>", "#"


def decode(ids) -> str:
    return "".join(map(chr, ids))


def encoder(*, template=(HEAD, TAIL), most=40, drop=0, grows=False, left=False, causal=True):
    """Texts to conditionings, a token for each letter, as one kind of pipeline gives them."""

    def encode(text: str) -> tuple[Conditioning, list[Given]]:
        letters = (template[0] + text + template[1])[:most]
        padding = PAD * (most - len(letters))
        ids = torch.tensor([[ord(c) for c in (padding + letters if left else letters + padding)]])
        mask = (ids != ord(PAD)).int()
        states = ids[0].cumsum(0) if causal else ids[0] + ids.sum()
        rows = states[:, None].float().expand(-1, 3)
        rows = rows[mask[0].bool()] if grows else rows
        negative = torch.tensor([[ord(c) for c in template[0] + template[1]]])
        given = [*given_to("text_encoder", negative, None, ord(PAD)),
                 *given_to("text_encoder", ids, mask, ord(PAD))]  # fmt: skip
        return Conditioning({"states": rows[drop:]}), given

    return encode


def read(encode, text: str, *, grows=False) -> Reading | None:
    reader = PromptReader({"text_encoder": decode}, {}, {"states"} if grows else (), encode)
    return reader(text, *encode(text)).get("states")


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ({}, 4), ({"left": True}, 27), ({"grows": True}, 4), ({"drop": 3}, 1),
        ({"grows": True, "drop": 3}, 1), ({"causal": False}, 4),
        ({"template": ("", ""), "causal": False}, 0),
    ],
)  # fmt: skip
def test_the_words_tokens_are_found(kind, first):
    """Padded on either side, cut to the real tokens, with and without the template's head."""
    prompt = "a Red car"
    found = read(encoder(**kind), prompt, grows=kind.get("grows", False))
    assert found is not None
    assert found.tokens(places(prompt, "red")) == (first + 2, first + 3, first + 4)
    # White space is nobody's.
    assert found.tokens() == tuple(first + i for i, letter in enumerate(prompt) if letter != " ")
    assert len(found.tail) == len(kind.get("template", (HEAD, TAIL))[1])
    assert bool(found.padding) == (not kind.get("grows", False))


def test_what_the_template_says_is_not_the_prompt():
    """The word is in the template as well, before and after the prompt."""
    found = read(encoder(template=("red or ", " a red")), "a red car")
    assert found is not None
    assert found.tokens(places("a red car", "red")) == (9, 10, 11)


def test_a_prompt_that_is_cut_is_read_as_far_as_it_goes():
    found = read(encoder(most=12), "a red car, a hat")
    assert found is not None
    assert found.tokens(places("a red car, a hat", "red")) == (6, 7, 8)
    assert found.tokens(places("a red car, a hat", "hat")) == ()
    assert found.tail == ()


def test_another_text_than_the_prompt_has_no_reading():
    """As by a pipeline that rewrites prompts."""
    encode = encoder()
    reader = PromptReader({"text_encoder": decode}, {}, (), encode)
    assert reader("a red car", *encode("a blue car")) == {}


def test_states_in_another_order_have_no_reading():
    """Where states do not begin to differ at the prompt's first token."""

    def moved(text):
        made, given = encoder()(text)
        states = made.states["states"]
        return Conditioning({"states": torch.cat([states[2:], torch.zeros(2, 3)])}), given

    assert read(moved, "a red car") is None


def test_a_letter_of_several_tokens_is_read():
    """Byte by byte: a token that is a part of a letter decodes to a replacement."""

    def encode(text):
        ids = torch.tensor([list(text.encode())])
        return Conditioning({"states": ids[0].cumsum(0)[:, None].float()}), given_to(
            "text_encoder", ids, None, None
        )

    reader = PromptReader(
        {"text_encoder": lambda ids: bytes(ids).decode(errors="replace")}, {}, {"states"}, encode
    )
    prompt = "a gr\u00fcn car"
    found = reader(prompt, *encode(prompt))["states"]
    assert found.tokens(places(prompt, "gr\u00fcn")) == (2, 3, 4, 5, 6)
    assert found.tokens(places(prompt, "car")) == (8, 9, 10)
