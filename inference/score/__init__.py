"""Codelengths of texts under a small, fixed, public model: the trusted role `python -m inference score`.

The gateway refunds what a text was charged above this number, so the number must never be less than −log2 P(text) for
one fixed measure P. P depends on constants (model, tokenizer, template, the rules here; `digest.py` names them all) and
on the request as it came from outside, and on nothing that a backend says.

A text is described by the symbols of one path: tokens, escaped bytes, END (`segmentation.py`). Any way of cutting a text into
symbols is sound, since different texts get different paths and the masses of all paths add up to at most 1. With LM the
model's softmax after the prompt and the tokens so far, the masses of the next symbol are (`measure.py`)

    END        w · Σ LM(e) over the tokens e that end an answer  +  2^-10
    ESCAPE b   2^-12 · 2^-8            for each byte value b; the model's state stays as it was
    token t    w · LM(t)               w = 1 − 2^-10 − 2^-12; control tokens have no mass of their own

which sum to at most 1. A text that was cut off is described as if it had ended, by END. What the model sees before a
symbol is a function of the prompt and of the symbol's place, never of what comes later (`windows.py`).

Charged are the bits of the path, a surcharge per modelled symbol for floating point (`measure.py`), and the sum is
rounded up. Imports go one way: `measure, segmentation, windows, digest` ← `scorer` ← `app` ← `bench, __main__`.
"""
