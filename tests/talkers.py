"""Traffic for tests that break Links: Streams both ways that know what they should hear.

Theory of operation. A `Talker` is the sink of one end of a Stream. It says its words in pieces, with pauses, then ends its
half; what it hears it consumes as its `Manner` is. Two of them are a `Conversation`, which is over when both have ended both
halves, and is then judged: what was heard is what was said, or, where a side stopped or reset, its beginning. `Traffic` keeps
a number of conversations going between the two ends of one Link.

How much is said is chosen so that a simulated minute is cheap and yet every Stream is in the middle of something at every
break: words are as long as they can be, pieces and pauses few. Pauses end on a common beat, so that those who paused go on in
one turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum, auto
from hashlib import sha256
from random import Random

import attrs

from netbore.link.link import Link
from netbore.link.poller import Poller
from netbore.proto.mux_stream import MuxStream
from netbore.proto.stream import Data
from netbore.proto.wire import Code, Kind

#: Seconds between the moments at which pauses end; no divisor of the time between breaks, which then fall anywhere in it.
BEAT = 0.007
#: Conversations at a time.
SLOTS = 20


class Manner(Enum):
    """How a side reads."""

    EAGER = auto()
    SLOW = auto()  # a little at a time
    LATE = auto()  # not for a while, then all
    STOPPING = auto()  # stops the other in the middle
    RESETTING = auto()  # resets the Stream in the middle


#: Mostly both directions are to be whole.
MANNERS = (*[Manner.EAGER] * 5, *[Manner.SLOW] * 3, *[Manner.LATE] * 3, Manner.STOPPING, Manner.RESETTING)


class Talker:
    """One end of a Stream. `heard` and `said` count for as long as it lives; `over` is told once."""

    def __init__(self, poller: Poller, random: Random, words: bytes, over: Callable[[], None]) -> None:
        self.poller = poller
        self.random = random
        self.words = words
        self.said = 0
        self.heard = bytearray()
        self.wrong: list[str] = []
        self.manner = random.choice(MANNERS)
        # Bytes of a piece; many words are not said in thousands of pieces.
        self.most = max(random.choice((50, 2000, 30000)), len(words) // 50)
        self.pause = random.choice((0.0, 0.02, 0.3))  # chance of one behind a piece
        self.pauses = 20  # at most
        self.patience = random.randint(1, 20000)  # bytes that a quitter hears
        self.eof = self.quit = self.was_reset = self.finished = False
        self._ended_speech = False
        self._pausing = False
        self._backlog = 0
        self._draining = False
        self._over = over
        self.stream: MuxStream | None = None

    def take(self, stream: MuxStream) -> None:
        """Begin."""
        self.stream = stream
        stream.sink = self
        if self.manner is Manner.LATE:
            stream.pause()
            self._later(self.random.uniform(0.05, 0.6), self._resume)
        self.speak()

    # Speaking

    def speak(self) -> None:
        stream = self.stream
        if stream is None or self._pausing or self._ended_speech:
            return
        while self.said < len(self.words):
            piece = memoryview(self.words)[self.said : self.said + 1 + int(self.random.random() * self.most)]
            taken = stream.send_nowait(piece)
            self.said += taken
            if taken < len(piece):
                return
            if self.pauses and self.random.random() < self.pause:
                self.pauses -= 1
                self._pausing = True
                self._later(self.random.uniform(0, 0.2), self._go_on)
                return
        stream.send_eof()
        self._end_speech()

    def _go_on(self) -> None:
        self._pausing = False
        self.speak()

    def _end_speech(self) -> None:
        self._ended_speech = True
        self._check_over()

    # Hearing: the Stream's sink

    def on_data(self, data: Data) -> None:
        assert self.stream is not None
        self.heard += data
        if self.manner in (Manner.STOPPING, Manner.RESETTING) and len(self.heard) >= self.patience:
            self._quit(self.stream)
        elif self.manner is Manner.SLOW:
            self._backlog += len(data)
            self._drain_later()
        else:
            self.stream.consumed(len(data))

    def _quit(self, stream: MuxStream) -> None:
        self.quit = True
        if self.manner is Manner.STOPPING:
            stream.stop(Code.CANCELLED)
            self._check_over()
        else:
            stream.reset(Code.CANCELLED)
            self._finish()

    def _drain_later(self) -> None:
        if self._backlog and not self._draining:
            self._draining = True
            self._later(self.random.uniform(0.001, 0.05), self._drain)

    def _drain(self) -> None:
        self._draining = False
        count = min(self._backlog, self.random.randint(1, 30000))
        if self.stream is not None and not self.finished:
            self._backlog -= count
            self.stream.consumed(count)
            self._drain_later()
            self._check_over()

    def _resume(self) -> None:
        if self.stream is not None and not self.finished:
            self.stream.resume()

    def on_eof(self) -> None:
        self._expect(not (self.eof or self.quit), "a second end, or one after a stop")
        self.eof = True
        self._check_over()

    def on_writable(self) -> None:
        self.speak()

    def on_stop(self, code: int) -> None:
        self._expect(code == Code.CANCELLED, f"stopped with {code}")
        self._end_speech()

    def on_reset(self, code: int, delivered: int = 0) -> None:
        self._expect(code == Code.CANCELLED, f"reset with {code}")
        self.was_reset = True
        self._finish()

    # The end

    def _check_over(self) -> None:
        if self._ended_speech and (self.eof or self.quit) and not self._backlog:
            self._finish()

    def _finish(self) -> None:
        if not self.finished and self.stream is not None:
            self.finished = True
            self.stream.release()
            self._over()

    def _expect(self, holds: bool, text: str) -> None:
        if not holds:
            self.wrong.append(text)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self.poller.call_at(math.ceil((self.poller.now + seconds) / BEAT) * BEAT, call)


@attrs.define(eq=False)
class Conversation:
    """Both ends of one Stream."""

    opener: Talker
    other: Talker

    @property
    def over(self) -> bool:
        return self.opener.finished and self.other.finished

    def judge(self) -> list[str]:
        """What was heard and not said, or said and not heard, in words."""
        return [
            *self.opener.wrong,
            *self.other.wrong,
            *_judge(self.opener, self.other, "to the other"),
            *_judge(self.other, self.opener, "to the opener"),
        ]


def _judge(speaker: Talker, hearer: Talker, which: str) -> list[str]:
    said, heard = speaker.words, bytes(hearer.heard)
    cut_short = hearer.quit or hearer.was_reset or speaker.was_reset
    expected = said[: len(heard)] if cut_short else said
    if sha256(heard).digest() == sha256(expected).digest():
        return []
    same = next((at for at, (a, b) in enumerate(zip(said, heard, strict=False)) if a != b), min(len(said), len(heard)))
    return [f"{which}: {len(said)} bytes said, {speaker.said} taken, {len(heard)} heard, the same up to {same}"]


class Traffic:
    """`slots` conversations at a time over one Link, every other one opened from the Edge."""

    def __init__(self, poller: Poller, edge: Link, agent: Link, random: Random, *, handle: int, slots: int = SLOTS) -> None:
        self.poller = poller
        self.random = random
        self.links = (edge, agent)
        self.handle = handle
        self.largest = 60000  # bytes of words
        self.stopping = False
        self.running: list[Conversation | None] = [None] * slots
        self.finished = 0
        self.wholes = 0  # directions that were heard to their end
        self.heard = 0
        self.errors: list[str] = []
        edge.on_stream = self._arrived
        agent.on_stream = self._arrived

    def start(self) -> None:
        for slot in range(len(self.running)):
            self._open(slot)

    @property
    def over(self) -> bool:
        return not any(self.running)

    @property
    def busy(self) -> int:
        """How many conversations there are now; each has words that were not heard or said yet."""
        return sum(conversation is not None for conversation in self.running)

    def _open(self, slot: int) -> None:
        """The next conversation of a slot; a little later when MAX_STREAMS does not allow it now."""
        stream = None if self.stopping else self.links[slot % 2].open(Kind.HTTP, self.handle)
        if stream is None:
            if not self.stopping:
                self.poller.call_at(self.poller.now + 0.02, lambda: self._open(slot))
            return

        def over() -> None:
            self._settle(slot, conversation)

        opener, other = (Talker(self.poller, self.random, self._words(), over) for _ in range(2))
        conversation = self.running[slot] = Conversation(opener, other)
        opener.take(stream)

    def _words(self) -> bytes:
        return self.random.randbytes(int(self.largest ** self.random.random()) - 1)

    def _arrived(self, stream: MuxStream) -> None:
        """The peer opened one: its id says which."""
        for conversation in self.running:
            mine = conversation.opener.stream if conversation else None
            if mine is not None and mine.id == stream.id:
                assert conversation is not None
                conversation.other.take(stream)
                return
        self.errors.append(f"Stream {stream.id} was not opened")

    def _settle(self, slot: int, conversation: Conversation) -> None:
        if not conversation.over or self.running[slot] is not conversation:
            return
        self.running[slot] = None
        self.finished += 1
        for talker in (conversation.opener, conversation.other):
            self.heard += len(talker.heard)
            self.wholes += talker.eof
        stream = conversation.opener.stream
        self.errors += [f"Stream {stream.id if stream else 0} {text}" for text in conversation.judge()]
        # Not from inside a sink's call.
        self.poller.post(self._open, slot)

    def describe(self) -> list[str]:
        """What has not ended, for whoever finds it stuck."""
        lines = []
        for conversation in filter(None, self.running):
            for name, talker in (("opener", conversation.opener), ("other", conversation.other)):
                lines.append(
                    f"Stream {talker.stream.id if talker.stream else None} {name} {talker.manner.name}: "
                    f"said {talker.said} of {len(talker.words)}, heard {len(talker.heard)}, eof {talker.eof}, "
                    f"finished {talker.finished}"
                )
        return lines
