"""The words that two domains exchange: one small typed message each, validated when decoded.

A frame's envelope is a msgpack array of these. Decoding builds nothing but them, so a frame that is not
ours is an error and never an action; what a user handed over travels inside as opaque `bytes` (a pickle) and
is opened only by the one it is for. Identifiers are chosen by the side that sends the first message about a thing.
Messages about objects that are known elsewhere carry two addresses: `to` whom they go, by way of others if need be, and
their `sender`'s. Where a message has `buffers`, so many of the frame's out-of-band buffers are its own, in order.
"""

# Annotations are not postponed here: msgspec would evaluate each string of them, which takes a new domain three times
# as long.

from typing import Any

import msgspec
from msgspec import Struct

FULL_WEIGHT = 1_000_000
"""The weight 1.0: weights travel and add up as integers in millionths, so that ten jobs of 0.1 make 1.0."""


class DefineFunction(Struct, tag=1, array_like=True):
    """Comes before the first job that uses the function; `code` is its pickle."""

    function: int
    code: bytes


class ForgetFunctions(Struct, tag=2, array_like=True):
    """These functions will not be used again."""

    functions: list[int]


class StartJob(Struct, tag=3, array_like=True, gc=False):
    """Run a function. `data` is the pickled tuple of its arguments, or nothing where there are none.

    A job that was `offered` starts only once the receiver has claimed it (`domains.ipc.claims`), any other when it
    arrives: those without a weight, and one for a domain that has nothing else to do.
    `variables` are the submitter's context variables and their values, each a pickle.
    """

    job: int
    function: int
    data: bytes
    weight: int
    variables: dict[bytes, bytes]
    buffers: int
    offered: bool


class CancelJob(Struct, tag=4, array_like=True):
    """Nobody wants the job's result any more; `reason` is the packed exception that its `Cancelled` will name."""

    job: int
    reason: bytes
    buffers: int


class CancelHeard(Struct, tag=18, array_like=True):
    """The job, which runs as a fiber, was cancelled there; its answer comes when it has unwound."""

    job: int


class RevokeJobs(Struct, tag=5, array_like=True):
    """These jobs were taken back before they were claimed: drop them, answer nothing."""

    jobs: list[int]


class JobReturned(Struct, tag=6, array_like=True, gc=False):
    """The job's value (nothing stands for None) and how long it ran, in seconds.

    All that it was given was `opened` there, or else some of that never will be.
    """

    job: int
    data: bytes
    seconds: float
    buffers: int
    opened: bool = True


class JobRaised(Struct, tag=7, array_like=True, gc=False):
    """The job's exception, as `domains.failures` packs it; `opened` as in `JobReturned`."""

    job: int
    data: bytes
    seconds: float
    buffers: int
    opened: bool = True


class Introduce(Struct, tag=8, array_like=True):
    """The first message of either side: the address under which the sender's objects are known."""

    address: int


class HoldReference(Struct, tag=9, array_like=True, gc=False):
    """To an object's home: the sender has a reference to it, from now until it says otherwise.

    It came by that hold of the issuer's, which the home discharges: nobody else knows when this has arrived.
    """

    to: int
    sender: int
    number: int
    issuer: int
    hold: int


class DischargeHold(Struct, tag=10, array_like=True, gc=False):
    """To whom a reference came from: it has arrived, and need not be kept alive for its journey any more."""

    to: int
    sender: int
    hold: int


class ReleaseReference(Struct, tag=11, array_like=True, gc=False):
    """To an object's home: the sender has no reference to it any more."""

    to: int
    sender: int
    number: int


class HomeGone(Struct, tag=14, array_like=True):
    """The domain where objects had their home has ended; `data` is the packed failure that says how."""

    to: int
    sender: int
    home: int
    data: bytes
    buffers: int


class WatchPromise(Struct, tag=15, array_like=True, gc=False):
    """To a promise's home: tell the sender, once, how it is resolved."""

    to: int
    sender: int
    number: int


class PromiseResolved(Struct, tag=16, array_like=True, gc=False):
    """From a promise's home to one who watches it: its value, plain or a pickle, or its packed failure."""

    to: int
    sender: int
    number: int
    failed: bool
    data: Any
    buffers: int


class ResolvePromise(Struct, tag=17, array_like=True, gc=False):
    """To a promise's home: a resolver that the sender was handed was used."""

    to: int
    sender: int
    number: int
    failed: bool
    data: Any
    buffers: int


class LendWeight(Struct, tag=19, array_like=True, gc=False):
    """From a domain to its parent: the job waits for jobs that it has submitted, and its weight is free meanwhile."""

    job: int


class RegainWeight(Struct, tag=20, array_like=True, gc=False):
    """The job, whose weight was lent, runs on."""

    job: int


class SubmitJob(Struct, tag=21, array_like=True, gc=False):
    """To a pool's home: run a function there, as `StartJob` says; the sender numbers its jobs.

    With `retries` left, `retry` is the pickle of after what and how soon.
    """

    to: int
    sender: int
    number: int
    job: int
    code: bytes
    name: str
    is_async: bool
    data: bytes
    weight: int
    priority: int
    retries: int
    retry: bytes
    variables: dict[bytes, bytes]
    buffers: int


class CancelSubmitted(Struct, tag=22, array_like=True):
    """To a pool's home: the sender does not want that job's result any more."""

    to: int
    sender: int
    number: int
    job: int
    reason: bytes
    buffers: int


class SubmittedEnded(Struct, tag=23, array_like=True, gc=False):
    """From a pool's home: what a submitted job came to, as in `JobReturned` or `JobRaised`.

    Or that it was `undelivered`: nobody could run it, or whoever should have has died, perhaps before opening it.
    `opened_by` is the address of the domain that has opened all that it was given, if there is one.
    """

    to: int
    sender: int
    number: int
    job: int
    failed: bool
    undelivered: bool
    data: bytes
    seconds: float
    buffers: int
    opened_by: int | None


class WatchMemory(Struct, tag=24, array_like=True):
    """From the parent: say once when the domain's resident memory is more than so many bytes after a job."""

    most_bytes: int


class MemoryExceeded(Struct, tag=25, array_like=True):
    """The resident memory, in bytes, that was too much."""

    size_bytes: int


class CallObject(Struct, tag=50, array_like=True, gc=False):
    """To an object's home: have an operation done, and answer.

    `data` is the pickled tuple of its arguments, or nothing.
    """

    to: int
    sender: int
    number: int
    call: int
    operation: str
    data: bytes
    buffers: int


class CallAnswered(Struct, tag=51, array_like=True, gc=False):
    """From an object's home: a call's value, plain or a pickle, or its packed failure.

    Failed with nothing means that it was withdrawn.
    """

    to: int
    sender: int
    call: int
    failed: bool
    data: Any
    buffers: int


class WithdrawCall(Struct, tag=52, array_like=True, gc=False):
    """To an object's home: the sender would rather not wait for that call. It is answered all the same."""

    to: int
    sender: int
    call: int


class TellObject(Struct, tag=53, array_like=True, gc=False):
    """To an object's home: have something done, and do not answer."""

    to: int
    sender: int
    number: int
    operation: str
    data: bytes
    buffers: int


class ConfigureLogging(Struct, tag=40, array_like=True):
    """From the parent: the levels of its loggers, and that below which nothing is logged at all."""

    root: int
    levels: dict[str, int]
    disable: int


class LogRecord(Struct, tag=41, array_like=True):
    """A log record: the values of `domains.logs._FIELDS`, its message, where it was made, and a pickle of the rest."""

    fields: list[str | int | float | None]
    text: str
    domain: str
    extra: bytes
    buffers: int


class AddItems(Struct, tag=58, array_like=True):
    """To a stream's home: items for places that the sender was promised. Bytes are the pickle of what is no scalar."""

    to: int
    sender: int
    number: int
    items: list[Any]
    has_pickles: bool
    buffers: int


class LendItems(Struct, tag=60, array_like=True):
    """From a stream's home: items that the receiver may take unasked while the lot is open. Bytes are pickles."""

    to: int
    sender: int
    number: int
    tally: bytes
    lot: int
    items: list[Any]


class RecallPlaces(Struct, tag=59, array_like=True, gc=False):
    """From a stream's home: give back the places that you were promised and have not used."""

    to: int
    sender: int
    number: int


class Seek(Struct, tag=54, array_like=True):
    """From a domain to its parent: the sender has something to say to that address, and would like a direct link."""

    sender: int
    address: int


class Meet(Struct, tag=55, array_like=True):
    """From a parent to two of its domains: their link, with the keys that it is secured by, and who waits for whom."""

    address: int
    name: str
    endpoint: str
    binds: bool
    public: bytes
    secret: bytes
    peer_public: bytes


class Bound(Struct, tag=57, array_like=True):
    """From a domain to its parent: it waits at the end of the link that it was told to bind, so the other can connect.

    Or it cannot, and they reach each other by way of the parent.
    """

    sender: int
    address: int
    waits: bool


class NoMeeting(Struct, tag=56, array_like=True):
    """From a parent to its domain: that address is reached by way of the parent."""

    address: int


class Ready(Struct, tag=12, array_like=True):
    """From a domain to its parent: it runs, and takes jobs."""

    pid: int


class Finish(Struct, tag=13, array_like=True):
    """From the parent: no more jobs will come; end once those that run have ended."""


Message = (
    DefineFunction
    | ForgetFunctions
    | StartJob
    | CancelJob
    | CancelHeard
    | RevokeJobs
    | JobReturned
    | JobRaised
    | Introduce
    | HoldReference
    | DischargeHold
    | ReleaseReference
    | HomeGone
    | WatchPromise
    | PromiseResolved
    | ResolvePromise
    | LendWeight
    | RegainWeight
    | SubmitJob
    | CancelSubmitted
    | SubmittedEnded
    | WatchMemory
    | MemoryExceeded
    | CallObject
    | CallAnswered
    | WithdrawCall
    | TellObject
    | ConfigureLogging
    | LogRecord
    | AddItems
    | LendItems
    | RecallPlaces
    | Seek
    | Meet
    | Bound
    | NoMeeting
    | Ready
    | Finish
)


_decoder: msgspec.msgpack.Decoder[list[Message]] = msgspec.msgpack.Decoder(list[Message])
"""One for all, made before a domain is forked: what it knows of the messages takes a while to gather."""


class ProtocolCodec:
    """Turns a turn's worth of messages into an envelope and back. Raises on anything that is not ours."""

    def __init__(self) -> None:
        self.encode = msgspec.msgpack.Encoder().encode
        self.decode = _decoder.decode
