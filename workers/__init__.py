"""The picture service: a resizer daemon, a client, and the wire format between them.

A resizer promises: every request that it has read whole gets exactly one reply or the connection ends; a
picture it cannot take never harms the next one; a refusal says why. It knows nothing of balancing, a client
nothing of what stands between.

    connection   frame frame frame ...          split at any byte, several to a segment
    frame        +-------------------------+---------------------------+-------------------- ~ ---+
                 | aa de 07 a6 02 57 c2 d0 | length, unsigned, big end | payload, `length` bytes  |
                 +-------------------------+---------------------------+-------------------- ~ ---+
                   8 bytes                   8 bytes, 1..max-frame
    payload      one gob stream: type definitions first, then one value, nothing after it
                 | n | -64 Request{..} | n | -65 ImgInfo{..} | n | 64 ImgInfo{name, type, data} size .. 0 |

    Request      ImgInfo{OriginalName Typ Width Height ImgData} TargetWidth TargetHeight CreatedAt DryRun
                 ours: ID Fit Format Quality in front of these and ImgInfo behind them: what is refused is
                 refused when the head of its frame has been read, whatever follows
    Response     ImgInfo{...} ResizedWidth ResizedHeight ProcessingTime CreatedAt
                 ours: ID Status Error Server Queue Workers

    without ID   replies in the order of the requests; a picture that cannot be read ends the connection
    with ID      replies in any order, failures are replies: 400 413 415 422 429 busy 503 draining 504 late
    429, 503 and a connection lost before the reply may be tried again elsewhere; everything else is final

Where to start reading: `wire/frames.py`, `wire/gob.py`, `wire/messages.py`; then `imaging/`,
`resizer/front.py`, `client/connection.py`.
"""
