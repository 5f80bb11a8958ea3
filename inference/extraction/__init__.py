"""How directions are found and judged: statistics of activations, and the jobs that gather those.

The statistics are pure: float tensors in, values out, sums in float64, randomness from a seed. The jobs run the model
through `inference.lab` in small pieces between the steps of everybody else.
"""
