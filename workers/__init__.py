"""The picture service: a resizer daemon, a client, and the wire format between them.

A resizer gives every request that it has read completely exactly one reply, or the connection ends. A picture that
it refuses has no effect on the next one, and a refusal states its reason. Neither resizer nor client depends on the
balancer between them.

    connection   frame frame frame ...          split at any byte, several to a segment
    frame        +-------------------------+---------------------------+-------------------- ~ ---+
                 | aa de 07 a6 02 57 c2 d0 | length, uint64 big-endian   | payload, `length` bytes  |
                 +-------------------------+---------------------------+-------------------- ~ ---+
                   8 bytes                   8 bytes, 1..max-frame
    payload      one gob stream: type definitions first, then one value, nothing after it
                 | n | -64 Request{..} | n | -65 ImgInfo{..} | n | 64 ImgInfo{name, type, data} size .. 0 |

    Request      ImgInfo{OriginalName Typ Width Height ImgData} TargetWidth TargetHeight CreatedAt DryRun
                 extension: ID Fit Format Quality Parameters in front of these and ImgInfo behind them, so that a request
                 can be refused when the head of its frame has been read
    Response     ImgInfo{...} ResizedWidth ResizedHeight ProcessingTime CreatedAt
                 extension: ID Status Error Server Queue Workers Note

    without ID   replies in the order of the requests; a picture that cannot be read ends the connection
    with ID      replies in any order; a failure is a reply: 400 413 415 422 429 busy 503 draining 504 timeout
    429, 503 and a connection lost before the reply may be retried on another connection; other failures are final

Where to start reading: `wire/frames.py`, `wire/gob.py`, `wire/messages.py`; then `imaging/`,
`resizer/front.py`, `client/run.py`.
"""
