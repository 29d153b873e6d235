"""Pushes a file with the ORAS client, lists its tag, and pulls it again."""

import os
import sys

import oras.client

host, password = sys.argv[1:3]
client = oras.client.OrasClient(hostname=host, tls_verify=False, auth_backend="basic")
client.login(hostname=host, username="anybody", password=password, tls_verify=False)
target = f"{host}/notes/first:v1"
pushed = client.push(target=target, files=["note.txt"], disable_path_validation=True)
assert pushed.status_code in (200, 201), pushed.status_code
assert client.get_tags(f"{host}/notes/first") == ["v1"]
os.makedirs("pulled", exist_ok=True)
files = client.pull(target=target, outdir="pulled")
print("pulled", open(files[0]).read().strip())
