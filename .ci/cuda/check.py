"""Compiles every CUDA text that the tests wrote, without a GPU: check.py LIBRARY ARCHITECTURE FOLDER... [--strict]

LIBRARY is NVIDIA's libnvrtc, ARCHITECTURE the GPUs' (sm_90a, compute_80). Prints what the compiler refuses, and what it
puts into local memory: spilled registers, and arrays that are indexed by what it does not know. With --strict that is a
fault, and so are products of matrix units that it would run one after the other; fused multiply-adds are allowed.
"""

import collections
import ctypes
import multiprocessing
import os
import pathlib
import re
import sys
import time


def load(library):
    builtins = pathlib.Path(library).with_name("libnvrtc-builtins.so.13.0")
    ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(library)


def compile_text(work):
    library, architecture, strict, file = work
    nvrtc = load(library)
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    text = pathlib.Path(file).read_bytes()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, os.path.basename(file).encode(), 0, None, None)
    options = [f"--gpu-architecture={architecture}", "--std=c++17"] + ([] if strict else ["--fmad=false"])
    if architecture.startswith("sm_"):
        options.append("--ptxas-options=-v")
    encoded = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    code = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return file, code, log.value.decode()


def local_memory(log):
    """Bytes of stack and of spills, as ptxas reports them."""
    numbers = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
    return [max(column) for column in zip(*[map(int, pair) for pair in numbers])] or [0, 0]


def main():
    library, architecture, *folders = [word for word in sys.argv[1:] if word != "--strict"]
    strict = "--strict" in sys.argv
    # several tests write the same variant
    named = {file.name: str(file) for folder in folders for file in pathlib.Path(folder).rglob("*.cu")}
    files = sorted(named.values())
    if not files:
        sys.exit(f"no CUDA texts in {folders}: the tests write them")
    start, faults, spilling = time.monotonic(), 0, collections.Counter()
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for file, code, log in pool.imap_unordered(compile_text, [(library, architecture, strict, file) for file in files], 8):
            name = os.path.basename(file)
            if code:
                faults += 1
                print(f"{name}\n" + "\n".join(log.splitlines()[:6]))
            serialized = re.findall(r".*\(C75\d\d\).*", log)
            print(*[f"{name}: {line}" for line in serialized], sep="\n", end="\n" if serialized else "")
            stack, spills = local_memory(log)
            faults += strict and bool(serialized or stack or spills)
            if stack or spills:
                spilling[f"{re.sub('-[0-9a-f]{16}-', ' ', name)}: {stack} bytes of stack, {spills} of spills"] += 1
    for line, count in sorted(spilling.items()):
        print(f"{line} ({count} variants)")
    seconds = time.monotonic() - start
    print(f"{len(files)} kernels for {architecture} in {seconds:.0f} s, {faults} faults, {len(spilling)} with local memory")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
