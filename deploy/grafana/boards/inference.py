"""Our own inference server: requests, tokens, the batch and its memory, steering. Its words are its own, and not metered."""

from deploy.grafana.dashboard import Board, Panel, Query, Row, Threshold, Variable

_SERVER = '{instance=~"$server"}'

REQUESTS = Row(
    title="Requests",
    panels=[
        Panel(
            title="Requests by route and status",
            description="499: nobody waited for the answer any more. 503: the queue is full, or the server is leaving.",
            unit="reqps",
            stacked=True,
            queries=[
                Query(
                    expr=f"sum by (route, status) (rate(weir_inference_requests_total{_SERVER}[$__rate_interval]))",
                    legend="{{route}} {{status}}",
                )
            ],
        ),
        Panel(
            title="Duration of chats",
            description="From a request's head to its answer's last byte, half and 99 of 100.",
            unit="s",
            queries=[
                Query(
                    expr=f"histogram_quantile({share}, sum by (instance, le) (rate("
                    f'weir_inference_request_duration_seconds_bucket{{instance=~"$server", route="/v1/chat/completions"}}'
                    "[$__rate_interval])))",
                    legend=f"{{{{instance}}}} p{name}",
                )
                for share, name in ((0.5, "50"), (0.99, "99"))
            ],
        ),
        Panel(
            title="Tokens",
            description="Prompt tokens, those of them that the prefix cache knew, and generated ones of finished answers.",
            unit="cps",
            queries=[
                Query(
                    expr=f"sum(rate(weir_inference_prompt_tokens_total{_SERVER}[$__rate_interval]))", legend="prompt"
                ),
                Query(
                    expr=f"sum(rate(weir_inference_generated_tokens_total{_SERVER}[$__rate_interval]))",
                    legend="generated",
                ),
                Query(
                    expr=f"sum(rate(weir_inference_cached_prompt_tokens_total{_SERVER}[$__rate_interval]))",
                    legend="prompt, from cache",
                ),
            ],
        ),
        Panel(
            title="Model served",
            description="Which weights, by digest, in which precision. Replay needs the same ones.",
            kind="stat",
            unit="none",
            queries=[
                Query(
                    expr=f"count by (id, digest, dtype) (weir_inference_model_info{_SERVER})",
                    legend="{{id}} {{dtype}} {{digest}}",
                )
            ],
        ),
    ],
)

BATCH = Row(
    title="Batch and memory",
    panels=[
        Panel(
            title="Batch rows",
            description="Requests that run, and how many may run at once.",
            unit="short",
            width=8,
            queries=[
                Query(expr=f"sum by (instance) (weir_inference_batch_rows{_SERVER})", legend="{{instance}} rows"),
                Query(
                    expr=f"sum by (instance) (weir_inference_batch_rows_max{_SERVER})", legend="{{instance}} at most"
                ),
            ],
        ),
        Panel(
            title="Waiting",
            description="Requests that wait for a place in the batch. The queue has 256 places; beyond it the answer is 503.",
            unit="short",
            width=8,
            thresholds=(Threshold(value=200, color="red"),),
            queries=[
                Query(expr=f"sum by (instance) (weir_inference_requests_waiting{_SERVER})", legend="{{instance}}")
            ],
        ),
        Panel(
            title="Key-value memory",
            description="The share of tokens held by running requests, for their prompts and their longest answers, and "
            "by the prefix cache, which gives way to them.",
            unit="percentunit",
            maximum=1,
            width=8,
            queries=[
                Query(
                    expr=f"sum by (instance) (weir_inference_kv_tokens_reserved{_SERVER})"
                    f" / sum by (instance) (weir_inference_kv_tokens_max{_SERVER})",
                    legend="{{instance}} requests",
                ),
                Query(
                    expr=f"sum by (instance) (weir_inference_prefix_tokens{_SERVER})"
                    f" / sum by (instance) (weir_inference_kv_tokens_max{_SERVER})",
                    legend="{{instance}} prefix cache",
                ),
            ],
        ),
    ],
)

STEERING = Row(
    title="Steering",
    panels=[
        Panel(
            title="Tokens steered",
            description="Tokens that an intervention changed, as counted in the forward pass: proof that it fired.",
            unit="cps",
            queries=[
                Query(
                    expr=f"sum by (part) (rate(weir_inference_steered_tokens_total{_SERVER}[$__rate_interval]))",
                    legend="{{part}}",
                )
            ],
        ),
        Panel(
            title="Stored",
            description="Steering vectors in the server's store, and derived models served beside the base.",
            unit="short",
            width=6,
            queries=[
                Query(
                    expr=f"sum by (instance) (weir_inference_vectors_stored{_SERVER})", legend="{{instance}} vectors"
                ),
                Query(expr=f"sum by (instance) (weir_inference_models_derived{_SERVER})", legend="{{instance}} models"),
            ],
        ),
        Panel(
            title="Jobs",
            description="Extractions, selections, evaluations and the like that the server remembers, by state.",
            unit="short",
            width=6,
            queries=[Query(expr=f"sum by (status) (weir_inference_jobs{_SERVER})", legend="{{status}}")],
        ),
    ],
)

BOARD = Board(
    name="inference",
    title="Weir: inference and steering",
    description="Our own inference server: requests, tokens, the batch and its memory, steering. "
    "What it shows is the server's own word, and reading it is a way out that nobody meters.",
    variables=[Variable(name="server", label="Server", query="label_values(weir_inference_model_info, instance)")],
    rows=[REQUESTS, BATCH, STEERING],
)
