"""Every maximum of the inference server, with its unit and the reason for it."""

from __future__ import annotations

BODY_BYTES_MAX = 8 << 20
"""Largest request body: an extraction of 512 texts of `TEXT_BYTES_MAX`. A chat of 8,000 tokens is 40 KB."""

MESSAGES_MAX = 512
"""Messages in one chat. A context of 8,192 tokens cannot hold more: a turn costs about 6 tokens of template alone."""

TOOLS_MAX = 64
"""Declared tools in one request; OpenAI allows 128, but 64 descriptions already fill the context of a small model."""

STOP_STRINGS_MAX = 4
"""OpenAI's own limit."""

STOP_BYTES_MAX = 256
"""Longest stop string in characters. Text that may begin one is held back, so it bounds the delay too."""

COMPLETION_TOKENS_DEFAULT = 512
"""Used when a request names no maximum; the reservation of KV memory follows it, so it is not the whole context."""

PREFILL_CHUNK_TOKENS = 128
"""Prompts run in pieces of this many tokens, cut at fixed places: a long prompt delays others a piece at a time, and
the prefix cache knows whole pieces. 64 would take 7 to 12 % more time, 256 at most 3 % less."""

PREFILL_STEP_TOKENS_MAX = 512
"""Prompt tokens run between two decode steps of everybody else: about 0.4 s on two cores."""

RESTORED_TOKENS_PER_RUN = 32
"""Tokens whose keys and values are copied in the time in which one is run, at least: what a step's share counts them."""

PREFIX_KV_SHARE = 8
"""The prefix cache may fill one part in so many of the key-value memory: 512 MB of the default 4 GB, 10,900 tokens."""

CACHE_SALT_CHARS_MAX = 128
"""Longest `cache_salt`: room for a digest or a name; it is hashed with every prompt."""

GATE_DECISIONS_MAX = 4_096
"""Decisions of gates remembered, one for each pair of gates and prompt: about 1 MB."""

QUEUE_REQUESTS_MAX = 256
"""Requests waiting for a place in the batch; more are refused with 503, since they would wait minutes on two cores."""

BATCH_ROWS_MAX = 256
"""Upper end of `--max-batch`; beyond it the per-row attention calls dominate a step."""

KV_BYTES_DEFAULT = 4 << 30
"""Key-value memory granted when `--kv-tokens-max` is not given: 87,000 tokens of SmolLM2-135M in float32."""

CONTEXT_TOKENS_MAX = 131_072
"""Longest context served, whatever the model's file claims; the rotary table is built for all of it."""

SCORE_ITEMS_MAX = 64
"""Texts in one request to score; the gateway settles in small groups, and one answer should not wait for many."""

SCORE_TEXT_BYTES_MAX = 1 << 20
"""Longest text to score, in UTF-8 bytes: about 250,000 tokens, ten minutes of two cores. Longer ones stay raw."""

SCORE_BODY_BYTES_MAX = 16 << 20
"""Largest body of a request to score: several texts of the maximal size, JSON's escapes and the prompts included."""

SCORE_PROMPT_CHARS_MAX = 1 << 16
"""Characters of a rendered prompt that are read, from its end: four times what its share of the window can hold."""

SCORE_QUEUE_TOKENS_MAX = 1 << 22
"""Tokens that may wait to be scored, about an hour on two cores; what is refused beyond it stays charged raw."""

SCORE_BATCH_TOKENS_DEFAULT = 2048
"""Tokens per forward pass. From 64 on the speed is the same; it bounds memory and what a short text waits for."""

JOBS_WAITING_MAX = 16
"""Jobs queued at a time. They run one after the other between decode steps."""

JOBS_KEPT_MAX = 512
"""Finished jobs remembered for `GET /v1/jobs/{id}`; the oldest is forgotten first. The vector itself stays on disk."""

JOB_WATCHERS_MAX = 16
"""Streams that follow one job. Each is an idle connection; more have nothing to see that 16 do not."""

PAIRS_MAX = 256
"""Contrast pairs of one extraction; the mean difference settles long before (its error falls with the square root)."""

TEXT_BYTES_MAX = 16_384
"""One text of an extraction, in UTF-8 bytes: about 4,000 tokens, half of the default model's context."""

PROMPTS_MAX = 256
"""Prompts of one calibration or evaluation; the 95th percentile of 256 answers of 32 tokens rests on 400 tokens."""

EXTRACTION_LAYERS_MAX = 256
"""Block outputs read by one extraction: `VECTOR_LAYERS_MAX`, what one stored object may hold."""

ACTIVATION_VALUES_MAX = 1 << 28
"""Numbers that one extraction may hold, 1 GiB of float32: 512 texts at all 30 layers of the default model take 9 M."""

SELECT_CANDIDATES_MAX = 1_024
"""Layers times positions of one selection. By refusal each takes three passes over the held-out prompts."""

SELECT_TOKENS_MAX = 64
"""Positions named in one selection; the default model's template has five tokens behind an instruction."""

EVALUATE_PASSAGES_MAX = 4_096
"""Texts run for one point of a propensity curve: prompts times answers. About five minutes on two cores."""

EVALUATE_SCALES_MAX = 33
"""Points of one propensity curve; each runs all prompts once or twice."""

TARGET_WORDS_MAX = 64
"""Words of one side of a propensity."""

ANSWER_TOKENS_MAX = 256
"""Tokens of an answer that is judged or diverged from. Refusals begin with their reason; 32 are enough to see one."""

LAB_BATCH_ROWS_MAX = 16
"""Answers made side by side for a job. A decode step of 16 rows takes about 40 ms on two cores; requests wait for it."""

LAB_BATCH_TOKENS_MAX = 16_384
"""Prompt and answer tokens made side by side for a job: 0.75 GB of SmolLM2-135M's keys and values in float32."""

LAB_STEP_TOKENS_MAX = 128
"""Tokens run at a time for a job; requests wait for it. Twice as many save 7 % of the time, half as many cost 30 %."""

LAB_HEAD_ROWS = 64
"""Positions whose distributions exist at a time: 25 MB of SmolLM2's in float64, for each of the models compared."""

VECTORS_STORED_MAX = 4_096
"""Vectors in one store. Listing them is one answer of about 2 MB then."""

SPEC_VECTORS_MAX = 16
"""Vectors in one request's steering."""

SCALE_ABS_MAX = 100.0
"""Largest |scale|. Coherence is lost near a relative dose of 1.9; extracted vectors have 0.1 to 1 at scale 1."""

ACTIVATION_ABS_MAX = 1e6
"""Largest projection or feature activation that a request may set; residuals of the models served stay below 1e5."""

DEGREES_ABS_MAX = 360.0
"""Largest |angle| of a rotation; more is the same angle again."""

ABLATED_DIRECTIONS_MAX = 16
"""Directions that one `ablate` takes away together; each costs a pass over the rows at three sites of every block."""

SITE_KERNELS_MAX = 32
"""Operations of one request at one site, `ablate` counting its directions: bounds what one row may cost a step."""

TREATMENTS_KEPT_MAX = 64
"""Sets of picks whose treatment one request remembers; 16 selectors of token ids could make 65,536, of 100 KB each."""

SELECTOR_NUMBERS_MAX = 1_024
"""Token ids, positions and windows in one selector; a mask is worked out from them for every token."""

VECTOR_NORM_MAX = 1e6
"""Largest norm of an uploaded vector. Residuals of the models served stay below 1e5; its square fits float32."""

VECTOR_NORM_MIN = 1e-12
"""Smallest norm of a direction. Its square is a normal float32 number, so that v/‖v‖ is what it should be."""

VECTOR_LAYERS_MAX = 256
"""Block outputs of one stored object, and so tensors: twice the layers of the deepest models in use."""

VECTOR_BYTES_MAX = 64 << 20
"""Tensors of one stored object: a dictionary of 8,192 features on d_model 1,024. A direction is a few KB."""

STORE_BYTES_MAX = 2 << 30
"""Tensors of all stored objects together; they are held in memory, so that a request never waits for a disk."""

METADATA_BYTES_MAX = 64 << 10
"""JSON beside one object's tensors, in characters. Provenance and figures for 64 layers take 10 KB."""

IMPORT_HEADER_BYTES_MAX = 1 << 20
"""Header of a file of vectors: 256 layers need 40 KB. Bounds what is parsed before the shapes are known."""

IMPORT_TENSORS_MAX = 3 * VECTOR_LAYERS_MAX
"""Tensors in one file: an eraser has three for every layer."""

IMPORT_BYTES_MAX = VECTOR_BYTES_MAX + 2 * IMPORT_HEADER_BYTES_MAX
"""A file to import: the largest object and its header."""

GGUF_KEYS_MAX = 64
"""Metadata keys of a GGUF control vector; llama.cpp and repeng write three."""

GGUF_TEXT_BYTES_MAX = 4_096
"""Longest key, value or name in a GGUF control vector. The longest known is a model hint of some 20 bytes."""

IMPORTS_AT_ONCE_MAX = 2
"""Imports read at the same time, each of up to three times `IMPORT_BYTES_MAX` in memory."""

DESCRIPTION_CHARS_MAX = 1_000
"""A description of a vector; a list of 4,096 stays below 5 MB."""

DERIVED_MODELS_MAX = 4
"""Derived models served. Each holds its own embedding, attention and feed-forward outputs: 260 MB of SmolLM2 in
float32, some 40 % of the model, and takes a second or two at start."""

DRAIN_S = 25.0
"""How long SIGTERM waits for answers in flight; below the 30 s after which Kubernetes kills."""

JOB_SILENCE_S_MAX = 10.0
"""A stream that follows a job says something at least this often: gateways cut what is silent for 30 s."""

KEEPALIVE_S = 75.0
"""How long an idle connection is kept; aiohttp's own 3,630 s let abandoned ones pile up."""

BODY_READ_TIMEOUT_S = 30.0
"""How long a request's body may take to arrive; aiohttp itself would wait for ever."""

WRITE_TIMEOUT_S = 60.0
"""How long a client may leave a stream unread before its connection is dropped."""
