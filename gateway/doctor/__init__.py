"""Looks for ways out, from the engine's place, and at what the gateway stands on, from the gateway's.

Needs no privileges, changes nothing, and sends nothing but what asks for an answer: connections without a byte, empty
datagrams and echo requests, and one constant DNS question. Knows sockets and files of this host; nothing of requests.
"""
