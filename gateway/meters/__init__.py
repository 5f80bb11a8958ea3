"""Codes that settle a closed answer: each gives the self-delimiting length of a whole text."""
