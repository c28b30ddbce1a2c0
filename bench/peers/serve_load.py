"""Load and soak of the server, with nothing but Python's own library.

    python bench/peers/serve_load.py ALLUVIUM MODEL            # clients, shared prefixes, a long prompt beside others
    python bench/peers/serve_load.py ALLUVIUM MODEL --soak N   # N random requests, each answer compared bit for bit

The soak mixes lengths, samples with seeds, hangs up inside streams and sends bodies that are wrong. Every answer with
its log-probabilities must be the one that the same request got alone; the memory of the server must not grow by more
than 5 % in the second half.
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


async def post(port, path, body, hang_up=None):
    """The status, the body and the times of its pieces; closes the connection after `hang_up` pieces."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    start, times, text = time.perf_counter(), [], b""
    while piece := await reader.read(1 << 16):
        times.append(time.perf_counter() - start)
        text += piece
        if hang_up is not None and len(times) > hang_up:
            writer.transport.abort()
            return None, b"", times
    writer.close()
    head, _, body = text.partition(b"\r\n\r\n")
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
    _, text, times = await post(port, "/v1/completions", body | {"stream": True})
    # the first piece is the head, the first token comes with the next one
    return text.count(b'"text"'), times[1] if len(times) > 1 else times[0], times


async def load(port):
    rng = random.Random(1)
    for clients in (1, 8, 32):
        bodies = [request(rng, 60, 48) | {"logit_bias": {}} for _ in range(2 * clients)]
        gate = asyncio.Semaphore(clients)

        async def one(body):
            async with gate:
                return await streamed(port, body)

        start = time.perf_counter()
        done = await asyncio.gather(*(one(body) for body in bodies))
        seconds = time.perf_counter() - start
        tokens = sum(count for count, _, _ in done)
        first = summary([first for _, first, _ in done])
        print(f"{clients:3} clients: {tokens / seconds:7.1f} tokens/s, first token {first}")
    prefix = words(rng, 2000)
    first, later = [
        (await streamed(port, {"prompt": prefix + end, "max_tokens": 1}))[1] for end in (" one two three", " four")
    ]
    share = f"{later * 1e3:.0f} ms ({later / first:.1%})"
    print(f"prompt of 2000 words: first token {first * 1e3:.0f} ms, with the same beginning {share}")
    other = asyncio.create_task(streamed(port, request(rng, 10, 400)))
    await asyncio.sleep(1)
    await streamed(port, {"prompt": words(rng, 2000), "max_tokens": 1})
    _, _, times = await other
    gaps = [b - a for a, b in zip(times[1:], times[2:])]
    print(f"beside a long prompt: the longest wait between tokens {max(gaps) * 1e3:.0f} ms, {summary(gaps)}")


def memory(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


async def soak(port, pid, count):
    rng = random.Random(2)
    kinds = [request(rng, rng.choice([1, 3, 40, 90, 200]), rng.choice([1, 4, 16])) for _ in range(60)]
    alone = [json.loads((await post(port, "/v1/completions", body))[1])["choices"] for body in kinds]
    wrong = [b"{", b"\xff" * 100, b'{"prompt": 3}', b'{"prompt": "a", "temperature": 9}', b"[]" * 5000]
    gate, counts, sizes, waits = asyncio.Semaphore(32), dict(answers=0, hung_up=0, refused=0, busy=0), [], []

    async def one(n):
        async with gate:
            what, at = rng.random(), rng.randrange(len(kinds))
            if what < 0.1:
                body = kinds[at] | {"stream": True, "max_tokens": 500}
                await post(port, "/v1/completions", body, hang_up=rng.randrange(5))
                counts["hung_up"] += 1
            elif what < 0.2:
                status, text, _ = await post(port, "/v1/completions", rng.choice(wrong))
                assert status == 400 and json.loads(text)["error"]["message"], (status, text)
                counts["refused"] += 1
            else:
                status, text, times = await post(port, "/v1/completions", kinds[at])
                if status == 429:
                    counts["busy"] += 1
                    return
                assert status == 200 and json.loads(text)["choices"] == alone[at], f"request {at}: {text}"
                counts["answers"] += 1
                waits.append(times[0])
            if n % 50 == 0:
                sizes.append(memory(pid))

    await asyncio.gather(*(one(n) for n in range(count)))
    half = sizes[len(sizes) // 2 :]
    growth = max(half) / half[0] - 1
    print(f"{counts}; memory {half[0] >> 10} MiB, in the second half {growth:+.1%}; waiting {summary(waits)}")
    assert growth < 0.05, "the memory grows"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--soak", type=int, help="random requests")
    parser.add_argument("--parallel", type=int, default=32)
    args = parser.parse_args()
    serve = [args.program, "serve", "--model", args.model, "--port", "0", "--device", "cpu"]
    serve += ["--parallel", str(args.parallel)]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(server.stdout.readline().rsplit(":", 1)[-1])
            asyncio.run(soak(port, server.pid, args.soak) if args.soak else load(port))
        finally:
            server.terminate()


if __name__ == "__main__":
    sys.exit(main())
