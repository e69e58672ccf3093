"""Sockets on which processes listen, and a stranger who tries them."""

import socket
import ssl
import subprocess
import sys

import psutil

NOBODY = "65534"
STRANGER = """
import os, ssl, sys
from pathlib import Path
from distributed import Client, Security

class Trusting(Security):  # does not mind whom it talks to
    def _get_tls_context(self, tls, purpose):
        context = super()._get_tls_context(tls, purpose)
        context.verify_mode = ssl.CERT_NONE
        return context

host, mark, user = sys.argv[1:]
attempts = (f"tcp://{host}", None), (f"tls://{host}", Trusting.temporary())
if os.getuid() == 0:  # not before: other users may be unable to read what was imported
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
for address, security in attempts:
    try:
        with Client(address, security=security, timeout=5) as client:
            client.run_on_scheduler(lambda: Path(mark).touch())
        print("let in")
    except (OSError, ValueError):  # the latter from tornado, if the scheduler greets in plain text before TLS begins
        print("refused")
"""


def try_as_another_user(address, mark):
    """Return how another user fares who runs code on a scheduler: without credentials, and with some of their own.

    Tests that do not run as root are that other user themselves.
    """
    command = [sys.executable, "-c", STRANGER, address.partition("://")[2], str(mark), NOBODY]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def listening(*processes):
    """Return the IP addresses and ports on which processes listen."""
    found = {one.laddr for process in processes for one in process.net_connections("inet") if one.status == "LISTEN"}
    return {(address.ip, address.port) for address in found}


def family(process):
    """Return a process and all that it started."""
    first = psutil.Process(process)
    return [first, *first.children(recursive=True)]


def asks_for_credentials(ip, port):
    """Return whether who speaks TLS, but has no certificate, hears that one is required, and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ip, ip)
    try:
        with socket.create_connection((here, port), timeout=20) as plain, context.wrap_socket(plain) as secured:
            secured.recv(1)
    except ssl.SSLError as error:
        return "CERTIFICATE_REQUIRED" in str(error)
    except TimeoutError:  # what speaks something else may wait for more
        return False
    return False
