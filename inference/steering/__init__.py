"""Changing activations while a request runs: stored vectors, the request's spec, the per-row table of a step.

Layer index convention, everywhere: block *output* l, which is HF `hidden_states[l + 1]`.
"""
