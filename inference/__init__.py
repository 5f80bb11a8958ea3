"""The model server: the only place that knows torch, weights, tokens and activations.

It meets the gateway over HTTP only and never imports `gateway` or `policy`. Inside it imports go one way:
`limits, config` ← `philox, sampling, tokenizer, tools, chat` ← `weights, steering, model` ← `engine` ← `lab` ← `extraction`
← `server` ← `score` ← `__main__`; the engine sees token ids and nothing of text or HTTP.
"""
