"""Theft, tried: a hostile backend and a decoder outside, through a real gateway and through a proxy that hides nothing."""
