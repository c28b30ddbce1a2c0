"""Load and soak of the server, with nothing but Python's own library.

    python bench/peers/serve_load.py ALLUVIUM MODEL            # clients, shared prefixes, a long prompt beside others
    python bench/peers/serve_load.py ALLUVIUM MODEL --beside 8081   # the same clients at another server of that port
    python bench/peers/serve_load.py ALLUVIUM MODEL --soak N   # N random requests, each answer compared bit for bit

The soak mixes lengths, samples with seeds, hangs up inside streams, reads slowly, floods the queue, and sends bodies
and heads that are wrong. Every answer with its log-probabilities must be the one that the same request got alone; the
memory of the server, its peak and what it keeps without requests, must not grow by more than 5 % in the second half.
Then the server is killed and started again at the same port, and must give the same answers.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time

WORDS = "the gated delta rule writes a correction to memory and reads it back again with decay over time".split()
PATH = "/v1/completions"
WRONG_BODIES = [b"{", b"\xff" * 100, b'{"prompt": 3}', b'{"prompt": "a", "temperature": 9}', b"[]" * 5000]
WRONG_HEADS = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    b"GET\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"a" * (80 << 10) + b"\r\n\r\n",
    b"\r\n" * 50 + b"\0" * 50,
]


async def raw(port, data):
    """All that the server answers to these bytes; nothing where it resets the connection."""
    text = b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        writer.write_eof()
        while piece := await reader.read(1 << 16):
            text += piece
        writer.close()
    except (ConnectionError, OSError):
        pass
    return text


async def post(port, body, hang_up=None, pause=0.0):
    """The status, the body and the times of its pieces. Aborts the connection after `hang_up` pieces."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 10 if pause else 1 << 24)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    start, times, pieces = time.perf_counter(), [], []
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    while piece := await reader.read(1 << 10 if pause else 1 << 16):
        times.append(time.perf_counter() - start)
        pieces.append(piece)
        if hang_up is not None and len(times) > hang_up:
            writer.transport.abort()
            return None, b"", times
        if pause:
            await asyncio.sleep(pause)
    writer.close()
    head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
    return int(head.split()[1]), body, times


def words(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


def request(rng, size, tokens):
    body = {"prompt": words(rng, size), "max_tokens": tokens, "temperature": 0.8, "logprobs": 1}
    return body | {"seed": rng.randrange(1000)}


def summary(times):
    times = sorted(times)
    return f"median {statistics.median(times) * 1e3:.0f} ms, p99 {times[int(0.99 * (len(times) - 1))] * 1e3:.0f} ms"


async def streamed(port, body):
    """Tokens, the time to the first and all times of a stream."""
    _, text, times = await post(port, body | {"stream": True})
    # the first piece is the head, the first token comes with the next one
    return text.count(b'"text"'), times[1] if len(times) > 1 else times[0], times


async def clients(port, count, name):
    rng = random.Random(count)
    bodies = [request(rng, 60, 48) for _ in range(4 * count)]
    bodies = [{key: body[key] for key in ("prompt", "max_tokens", "seed")} | {"temperature": 0} for body in bodies]
    gate = asyncio.Semaphore(count)

    async def one(body):
        async with gate:
            return await streamed(port, body)

    start = time.perf_counter()
    done = await asyncio.gather(*(one(body) for body in bodies))
    seconds = time.perf_counter() - start
    tokens = sum(got for got, _, _ in done)
    first = summary([first for _, first, _ in done])
    speed = f"{tokens} tokens, {tokens / seconds:7.1f} tokens/s"
    print(f"{name}, {count:2} clients: {speed}, first token {first}", flush=True)


async def load(port, beside):
    for count in (1, 8, 32):
        for _ in range(2):
            await clients(port, count, "alluvium")
            if beside:
                await clients(beside, count, "beside")
    rng = random.Random(1)
    prefix = words(rng, 1500)
    first, later = [
        (await streamed(port, {"prompt": prefix + end, "max_tokens": 1}))[1] for end in (" one two three", " four")
    ]
    share = f"{later * 1e3:.0f} ms ({later / first:.1%})"
    print(f"prompt of 1500 words: first token {first * 1e3:.0f} ms, with the same beginning {share}")
    other = asyncio.create_task(streamed(port, request(rng, 10, 400)))
    await asyncio.sleep(1)
    await streamed(port, {"prompt": words(rng, 1500), "max_tokens": 1})
    _, _, times = await other
    gaps = [b - a for a, b in zip(times[1:], times[2:])]
    if gaps:
        print(f"beside a long prompt: the longest wait between tokens {max(gaps) * 1e3:.0f} ms, {summary(gaps)}")


def memory(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


class Soak:
    """Random requests, and what became of them."""

    def __init__(self, port, pid, count):
        self.rng = random.Random(2)
        self.port, self.pid, self.count = port, pid, count
        self.kinds = [
            request(self.rng, self.rng.choice([1, 3, 40, 90, 200]), self.rng.choice([1, 4, 16])) for _ in range(60)
        ]
        self.alone, self.sizes, self.at_rest, self.waits = [], [], [], []
        names = "answers busy wrong_bodies wrong_heads hung_up slow floods"
        self.counts = dict.fromkeys(names.split(), 0)

    async def answer(self, at):
        """Compares an answer with the one that the same request got alone."""
        status, text, times = await post(self.port, self.kinds[at])
        if status == 429:
            self.counts["busy"] += 1
            return
        assert status == 200 and json.loads(text)["choices"] == self.alone[at], f"request {at}: {text}"
        self.counts["answers"] += 1
        self.waits.append(times[0])

    async def one(self):
        what, at = self.rng.random(), self.rng.randrange(len(self.kinds))
        if what < 0.12:
            body = self.kinds[at] | {"stream": True, "max_tokens": 500}
            await post(self.port, body, hang_up=self.rng.randrange(5))
            self.counts["hung_up"] += 1
        elif what < 0.2:
            status, text, _ = await post(self.port, self.rng.choice(WRONG_BODIES))
            assert status == 400 and json.loads(text)["error"]["message"], (status, text)
            self.counts["wrong_bodies"] += 1
        elif what < 0.22:
            text = await raw(self.port, self.rng.choice(WRONG_HEADS))
            assert not text or text.split()[1] in (b"400", b"431"), text
            self.counts["wrong_heads"] += 1
        elif what < 0.228:
            await post(self.port, self.kinds[at] | {"stream": True, "max_tokens": 200}, pause=0.02)
            self.counts["slow"] += 1
        else:
            await self.answer(at)

    async def run(self):
        # twice, so that the second answers come from the prefix cache
        for _ in range(2):
            first = [json.loads((await post(self.port, body))[1])["choices"] for body in self.kinds]
            assert not self.alone or first == self.alone, "alone, with and without the prefix cache"
            self.alone = first
        gate, done = asyncio.Semaphore(32), 0

        async def gated():
            nonlocal done
            async with gate:
                await self.one()
            done += 1
            if done % max(1, self.count // 400) == 0:
                self.sizes.append(memory(self.pid))

        left, step = self.count, max(500, self.count // 10)
        while left > 0:
            here = min(step, left)
            await asyncio.gather(*(gated() for _ in range(here)))
            # a flood: more at once than may wait
            flood = [self.answer(self.rng.randrange(len(self.kinds))) for _ in range(400)]
            await asyncio.gather(*flood)
            self.counts["floods"] += 1
            left -= here
            # the load swings, and the memory with it; without requests it is what is kept
            await asyncio.sleep(3)
            self.at_rest.append(memory(self.pid))
            print(f"{self.count - left} requests, {self.at_rest[-1] / 1024:.1f} MiB at rest", flush=True)
        print(f"{self.counts}; waiting {summary(self.waits)}")
        half, rest = len(self.sizes) // 2, len(self.at_rest) // 2
        growths = []
        for name, sizes, middle in (("peak", self.sizes, half), ("at rest", self.at_rest, rest)):
            first, second = max(sizes[:middle]) / 1024, max(sizes[middle:]) / 1024
            growths.append(second / first - 1)
            print(f"memory, {name}: {first:.1f} MiB in the first half, {second:.1f} in the second, {growths[-1]:+.1%}")
        sys.stdout.flush()
        self.growth = max(growths)


def start(args, port):
    serve = [args.program, "serve", "--model", args.model, "--port", str(port), "--device", "cpu"]
    serve += ["--parallel", str(args.parallel), "--cache-size", str(args.cache_size)]
    server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    return server, int(server.stdout.readline().rsplit(":", 1)[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--soak", type=int, help="random requests")
    parser.add_argument("--parallel", type=int, default=32)
    parser.add_argument("--cache-size", type=int, default=8, help="MiB of the prefix cache")
    parser.add_argument("--beside", type=int, help="the port of another server with the same weights")
    args = parser.parse_args()
    server, port = start(args, 0)
    try:
        if not args.soak:
            return asyncio.run(load(port, args.beside))
        soak = Soak(port, server.pid, args.soak)
        asyncio.run(soak.run())
        server.kill()
        server.wait()
        server, _ = start(args, port)
        soak.port = port
        asyncio.run(again(soak))
        print("killed and started again: the same answers", flush=True)
        assert soak.growth < 0.05, "the memory grows"
    finally:
        server.kill()
        server.wait()


async def again(soak):
    for at in range(len(soak.kinds)):
        await soak.answer(at)


if __name__ == "__main__":
    sys.exit(main())
