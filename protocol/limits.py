"""Every bound of the protocol, with its reason. SPEC.md quotes this file."""

from __future__ import annotations

PROTOCOL_VERSIONS = (1, 1)
"""Lowest and highest version that this code speaks."""

MAX_PAYLOAD = 65_536
"""Bytes of stream data in one frame. The largest UDP payload (65,507 bytes, RFC 768 over IPv4) fits in one, and the
guest's virtio_console driver takes 32 KiB a write, so larger frames gain nothing."""

SHARED_PAYLOAD = 16_384
"""Bytes of a frame while small ones are under way as well: somebody waits for answers, and each waits for a frame."""

SMALL_PAYLOAD = 4_096
"""Bytes up to which a frame counts as small."""

SHARED_FRAMES = 64
"""Frames behind the last small one that are kept short: a megabyte."""

MAX_BODY = MAX_PAYLOAD + 1_024
"""Bytes of one frame's body: the payload and its envelope. A larger announced length ends the generation."""

STREAM_WINDOW = 262_144
"""Bytes that a peer may send on one stream before it is granted more. At 2 ms round trip this allows 131 MB/s."""

SMALL_WINDOW = 16_384
"""Window of a stream that is opened while `WINDOW_BUDGET` is used up."""

WINDOW_BUDGET = 64 * 1024 * 1024
"""Sum of the windows up to which a stream gets a full one. What a peer can make us hold is less than this plus
`2 * MAX_STREAMS * SMALL_WINDOW` (both sides open streams), that is 192 MiB."""

SEND_QUEUE = 131_072
"""Bytes queued on a stream before its source should pause: two frames, so that one is ready while one is written."""

SEND_QUEUE_FRAMES = 256
"""Frames queued on a stream before its source should pause, for a source that gives a few bytes at a time."""

MAX_STREAMS = 4_096
"""Streams and flows alive at once, opened by one side."""

MAX_QUEUED = 65_536
"""Messages about the life and credit of streams that wait to be sent. A peer that causes more without reading them is
cut off; our own new streams are denied at half of it. All `2 * MAX_STREAMS` streams at once need about 50,000: an
answer, a window's credit in quarters and a reset each."""

FLOW_QUEUE = 64
"""Datagrams waiting on one UDP flow; further ones are dropped and counted, as a full socket buffer would."""

FLOW_QUEUE_BYTES = 524_288
"""Bytes waiting on one UDP flow, for the same reason (eight of the largest datagrams)."""

MAX_PORTS = 16_384
"""Ports that a guest may have open; more is reported and ignored. 65,535 of each protocol is no honest guest."""

PORTS_PER_FRAME = 256
"""Ports in one frame, so that the largest still fits `MAX_BODY`."""

MAX_NAME = 255
"""Bytes of a name (process, unit, host, capability)."""

MAX_TEXT = 4_096
"""Bytes of a reason or of a description."""

MAX_PATH = 4_096
"""Bytes of a path (PATH_MAX, limits.h)."""

MAX_SOCKET_PATH = 107
"""Bytes of a unix socket's path in the guest (sun_path with its NUL has 108, unix(7))."""

MAX_LISTENERS = 8_192
"""Listeners in the guest that the host may have at once: two rules of 1,000 ports, for both protocols, at both loopback
addresses."""

MAX_ARGUMENTS = 1_024
"""Arguments or environment entries of a command."""

MAX_COMMAND = 32_768
"""Bytes of all arguments and the environment of a command: half a frame."""

SYNC_RETRY = 1.0
"""Seconds after which an unanswered SYNC is sent again."""

PING_AFTER = 5.0
"""Seconds of silence after which the host asks the guest for a sign of life."""

GUEST_PING_AFTER = 12.0
"""Seconds of silence after which the guest asks. Later, so that on a quiet channel only one end does."""

PONG_WITHIN = 10.0
"""Seconds of silence after a question until the peer is taken to be away and its streams are reset."""
