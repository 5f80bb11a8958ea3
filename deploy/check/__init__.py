"""Whether what is deployed is valid: every file of `deploy/` before the tools of those who will read it.

Knows the validators and the files. Imports nothing of the gateway but the policy's parser.
"""
