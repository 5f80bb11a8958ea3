"""Load and comparison tests: black boxes over HTTP. Knows the public protocol; imports nothing of ours."""
