"""Every maximum, with its unit and its reason. A value from outside that exceeds one is refused, never truncated."""

from __future__ import annotations

# What a client may send.
REQUEST_BYTES_MAX = 4 * 1024 * 1024  # a 128k-token context is about 0.5 MB of text; the rest is room for tool schemas
HEADER_LINE_BYTES_MAX = 8190  # the figure Apache and aiohttp share
HEADERS_MAX = 64  # browsers send about 20; more is padding
MESSAGES_MAX = 2048
TOOLS_MAX = 128  # the OpenAI limit
STOP_STRINGS_MAX = 4  # the OpenAI limit
STOP_STRING_CHARS_MAX = 256
STEERING_VECTORS_MAX = 16
STEERING_LAYER_MAX = 1023  # no model has as many blocks; a set of layers is one number of so many bits
STEERING_SCALE_MAX = 1e4  # coherence ends at a relative dose near 2; vectors may be of any norm
STEERING_VALUE_MAX = 1e6  # projections, thresholds, degrees: residuals stay below 1e5
STEERING_PLACES_MAX = 4096  # tokens, positions or windows of one selector
STEERING_ANSWER_TOKENS_MAX = 131_072  # where "from the k-th token on" ends: Weir's model server has no longer context
STEERING_POSITION_MAX = 2**31 - 1  # either way; longer contexts do not exist
TOKEN_ID_MAX = 2**31 - 1
ORTHOGONAL_VECTORS_MAX = 16  # directions taken out of a model at once
COMBINED_VECTORS_MAX = 16  # terms of one combination: as many as one spec may name
SCALES_TRIED_MAX = 33  # of one evaluation: a curve of more points shows no more
SELECT_TOKENS_MAX = 64  # positions tried at each layer
JOB_ANSWER_TOKENS_MAX = 256  # of each answer that a calibration or an evaluation has a model give
FIRST_WORDS_MAX = 64  # that a refusal may begin with
JOB_PROMPTS_MAX = 256  # of a calibration or an evaluation
CONTRAST_TEXTS_MAX = 256
CONTRAST_TEXT_CHARS_MAX = 8192
EMBEDDING_INPUTS_MAX = 256  # of one request; clients that have more send several

# What a backend may send.
EVENT_BYTES_MAX = 256 * 1024  # one SSE event; a one-token chunk is about 270 bytes, a whole tool call a few KB
# Everything a backend may send for one answer, envelope included: a base, so much for every token that was asked for, and
# so much for every character that it says. A one-token chunk is about 270 bytes. What is beyond it is not an answer, and
# to parse it would let a backend make itself felt by others for nothing.
WIRE_BASE_BYTES = 64 * 1024
WIRE_BYTES_PER_TOKEN = 512
WIRE_BYTES_PER_CHARACTER = 1024
ANSWER_JSON_BYTES_MAX = 8 * 1024 * 1024  # one unstreamed answer
PARSE_BYTES_MAX = 32 * 1024  # of one answer in one turn of the event loop: under a millisecond
ANSWER_PENDING_BYTES_MAX = 256 * 1024  # parsed but unreleased text; beyond it the backend is not read
TOOL_CALLS_MAX = 64
TOOL_ARGUMENTS_BYTES_MAX = 1024 * 1024  # of one call as the backend spells it; its canonical form counts as text
TOKENS_REPORTED_MAX = 2**31 - 1  # usage integers beyond this are garbage
JOB_BYTES_MAX = 1024 * 1024  # a job's document: at most as many rows as a result may have, of about 200 bytes
JOB_EVENTS_BYTES_MAX = 4 * 1024 * 1024  # a stream of them: a backend may say every state many times
RESULT_LAYERS_MAX = 1024  # of an extraction: one for each block
RESULT_CANDIDATES_MAX = 1024  # of a selection: 128 blocks at 8 positions, each judged by passes of the model
VECTORS_LISTED_MAX = 1024  # of one tenant at one model; their handles are charged raw
VECTORS_BODY_BYTES_MAX = 16 * 1024 * 1024  # 1,024 vectors of one tenant with figures for 100 layers each
VECTOR_BODY_BYTES_MAX = 128 * 1024  # one of them: figures for 256 layers take 40 KB, our own server keeps 64 KB at most
EMBEDDING_DIMENSIONS_MAX = 8192  # where policy does not fix them; the longest in use have 4096

# What leaves.
BYTES_PER_TOKEN_MAX = 16  # honest text averages 4.3 bytes a token; an answer longer than max_tokens x 16 bytes is cut
ANSWER_BYTES_MAX = 1024 * 1024  # one answer, whatever max_tokens says
FLOW_BLOCK_BYTES = 512  # how much a stream reserves ahead: large enough to be rare, small enough to share a budget
PACED_HEAD_QUANTA = 4  # in hand before a paced answer begins: rides out three late ticks
TICK_RELEASE_BYTES_MAX = 4096  # one stream, one tick: keeps a burst from starving its neighbours

# How long things may take, in seconds.
CLIENT_HEAD_S_MAX = 15.0  # from a connection's or a head's first byte to the head's last: no key has been shown yet
REQUEST_BODY_S_MAX = 30.0  # a slow body holds a connection and what has come of it
CLIENT_LINGER_S_MAX = 2.0  # after a refusal, for a body that is still coming: a reset could overtake the answer
CLIENT_KEEPALIVE_S_MAX = 75.0  # nginx's default; aiohttp's own default is 3630 s
CLIENT_WRITE_S_MAX = 30.0  # a client that reads nothing for so long is gone
CLIENT_ANSWER_S_MAX = 3600.0  # beyond the backend's own deadline: a client may read slowly, but not for ever
DRAIN_S_MAX = 30.0  # after SIGTERM, open answers may finish for this long

# Processes of one host.
WORKERS_MAX = 64
WORKER_SOON_S = 10.0  # a worker that dies so soon after it began to serve may do so again: it is restarted with a delay
WORKER_RESTART_S_MAX = 30.0  # the delay doubles up to this
WORKER_ANSWER_S_MAX = 1.0  # how long figures wait for a busy worker; then its last ones are shown
WORKER_OBEYS_S_MAX = 10.0  # a worker that has not done what it was told after that is killed
WORKER_COLLECT_S = 2.0  # how often counters are collected: what a worker counted after that dies with it

# The audit log.
LEAF_BYTES_MAX = 2048  # of one record: a log of years stays small enough to be copied and read as a whole
ROUTE_BYTES_MAX = 64  # of a route's name, on the record of an answer

# What the process holds.
CLIENT_SEND_BUFFER_BYTES = 128 * 1024  # SO_SNDBUF; the default lets about 3.7 MiB leave after a cut
CLIENT_WRITE_PIECE_BYTES = 64 * 1024  # each has CLIENT_WRITE_S_MAX: who takes 2 KB/s may have all of a long answer
CLIENT_CONNECTIONS_MAX = 10_000
UPSTREAM_CONNECTIONS_MAX = 4096
SETTLE_QUEUE_ANSWERS_MAX = 1024  # long texts waiting for a thread; beyond it an answer keeps its raw charge
SCORE_BATCH_ANSWERS_MAX = (
    16  # in one question to the scorer: enough to fill its batches, few enough to answer in seconds
)
SCORE_QUEUE_BYTES_MAX = 16 * 1024 * 1024  # texts waiting for the scorer; beyond it an answer keeps its zstd charge
SETTLE_INLINE_BYTES_MAX = 16 * 1024  # zstd takes about 1 ms for this; longer texts are settled off the event loop
# Leases: bits that the store has debited and this process has not yet spent.
HOLDER_S = 60.0  # a process that has not been heard of for so long is not counted when leases are sized
LEASE_S = (
    300.0  # without word from the store, leases are used for so long: an outage should be ridden out, a zombie not
)
LEASE_REFRESH_S = 5.0  # how often the store is asked for limits, fences and other holders; Doorman's figure
LEASE_MARGIN_S = 1.0  # taken off a lease's life, with a thousandth of it, for clocks that run at different speeds
CLOCK_STEP_S_MAX = 1.0  # of the wall clock against the one since boot, between two looks: beyond it, leases are dropped
STALE_S = 30.0  # between a holder's last words to its log and to the store; both come every LEASE_REFRESH_S
RECENT_S = 180.0  # how much of the audit log is read at start at least: three times the distance of two tallies
TALLY_S = 60.0  # how often a process puts on the record what it holds
LEASE_TRAFFIC_S = 10.0  # of traffic in hand: a store is asked a few times a minute, and may be away for a moment
LEASES_KEPT = 64  # of one account, open though used up: more than the answers that usually wait to be settled
LEASE_PARTS = 10_000  # a lease takes at most this part of a limit beyond what is needed: 100 crashes waste 1 % of it

# What the status page remembers: about 2 MB at most, in a process that holds far more per open connection.
HISTORY_DISTANCE_S = 10.0  # between two points of a curve at first: an hour after a start, the curve is an hour long
HISTORY_POINTS_MAX = 360  # a curve is drawn about 360 pixels wide; more would be drawn over each other
HISTORY_CURVES_MAX = 64  # more budgets than anybody reads on one page; the others have their bar
HISTORY_REFUSALS_MAX = 24  # kinds of refusal and moments: what fits a screen, and a flood takes no more than a trickle
