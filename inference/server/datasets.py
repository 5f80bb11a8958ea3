"""The datasets that come with the server: what there is, not the texts."""

from __future__ import annotations

from aiohttp import web

from inference.datasets import NAMES, load
from inference.server.errors import json_response


async def list_datasets(_: web.Request) -> web.Response:
    data = []
    for name in NAMES:
        dataset = load(name)
        data.append(
            {
                "id": name,
                "object": "steering.dataset",
                "sides": [dataset.positive.name, dataset.negative.name],
                "is_paired": dataset.is_paired,
                "train": len(dataset.positive.train),
                "test": len(dataset.positive.test),
                "digest": dataset.digest_sha256,
            }
        )
    return json_response({"object": "list", "data": data})
