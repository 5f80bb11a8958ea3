"""Pure rules: values in, values out.

Knows: what a policy says, what may leave, what it costs, what may be claimed.
Must not know: the clock, the disk, the network, aiohttp, any process but this one.
"""
